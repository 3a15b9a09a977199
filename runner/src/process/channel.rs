//! Messages between the processes of one container, with descriptors beside them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::error::{Class, During, Error, Result};

/// What one process tells another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// To the first process: ids and limits are in place. To the server: stay in this user namespace.
    Proceed,
    /// To the server: enter the user namespace of the descriptor.
    UserNamespace,
    /// To the server: the descriptor is the union's connection to the kernel.
    FuseDevice,
    /// To the runner: the descriptor is the container's terminal.
    Terminal,
    /// To the server: the runner has put its own terminal back and ends.
    Finished,
    /// To the runner: something is not as asked, but good enough.
    Warning(String),
    /// To the runner: the container cannot be.
    Failed(Error),
}

/// One end of a connection; a peer that has died reads as its end.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
}

/// Longest message; longer texts are cut.
const LONGEST: usize = 4096;

/// Separates the text of an error from its hint.
const SEPARATOR: u8 = 0;

impl Channel {
    /// Makes both ends.
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .during("make a socket pair")?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// Makes another handle of this end.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        self.socket.try_clone().during("duplicate a descriptor").map(|socket| Self { socket })
    }

    /// Sends a message.
    pub(crate) fn send(&self, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
        let bytes = message.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: &[BorrowedFd<'_>] = descriptor.as_slice();
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Error::setup("cannot send a descriptor: no room"));
        }
        sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
            .during("send a message between the container's processes")?;
        Ok(())
    }

    /// Receives a message; none when the peer is gone.
    pub(crate) fn receive(&self) -> Result<Option<(Message, Option<OwnedFd>)>> {
        let mut bytes = [0_u8; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                // A peer that died with our message unread.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                result => break result.during("receive a message between the container's processes")?,
            }
        };
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        match bytes.get(..received.bytes) {
            None | Some([]) => Ok(None),
            Some(bytes) => Ok(Some((Message::decode(bytes)?, descriptor))),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = match self {
            Self::Proceed => vec![b'P'],
            Self::UserNamespace => vec![b'U'],
            Self::FuseDevice => vec![b'D'],
            Self::Terminal => vec![b'T'],
            Self::Finished => vec![b'E'],
            Self::Warning(text) => [b"W", text.as_bytes()].concat(),
            Self::Failed(error) => {
                let mut bytes = vec![b'F', encode_class(error.class())];
                bytes.extend(error.text().bytes().filter(|byte| *byte != SEPARATOR));
                if let Some(hint) = error.hint_text() {
                    bytes.push(SEPARATOR);
                    bytes.extend(hint.bytes().filter(|byte| *byte != SEPARATOR));
                }
                bytes
            }
        };
        bytes.truncate(LONGEST);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let malformed = || Error::setup("malformed message between the container's processes");
        let (kind, rest) = bytes.split_first().ok_or_else(malformed)?;
        match (kind, rest) {
            (b'P', []) => Ok(Self::Proceed),
            (b'U', []) => Ok(Self::UserNamespace),
            (b'D', []) => Ok(Self::FuseDevice),
            (b'T', []) => Ok(Self::Terminal),
            (b'E', []) => Ok(Self::Finished),
            (b'W', text) => Ok(Self::Warning(readable(text))),
            (b'F', [class, text @ ..]) => {
                let class = decode_class(*class).ok_or_else(malformed)?;
                let mut parts = text.splitn(2, |byte| *byte == SEPARATOR);
                let error = Error::new(class, parts.next().map(readable).unwrap_or_default());
                Ok(Self::Failed(match parts.next() {
                    Some(hint) => error.hint(readable(hint)),
                    None => error,
                }))
            }
            _ => Err(malformed()),
        }
    }
}

/// A cut text may end inside a character.
fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

const CLASSES: [(Class, u8); 6] = [
    (Class::Usage, b'u'),
    (Class::Setup, b's'),
    (Class::CommandNotFound, b'n'),
    (Class::CommandNotRunnable, b'r'),
    (Class::NoSuchContainer, b'c'),
    (Class::InUse, b'i'),
];

fn encode_class(class: Class) -> u8 {
    CLASSES.iter().find(|(known, _)| *known == class).map_or(b's', |(_, code)| *code)
}

fn decode_class(code: u8) -> Option<Class> {
    CLASSES.iter().find(|(_, known)| *known == code).map(|(class, _)| *class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        let (one, other) = Channel::pair().unwrap();
        let failed = Error::new(Class::CommandNotFound, "no \"x\"").hint("look");
        for message in [
            Message::Proceed,
            Message::UserNamespace,
            Message::FuseDevice,
            Message::Terminal,
            Message::Finished,
            Message::Warning("w".to_owned()),
            Message::Failed(failed),
            Message::Failed(Error::setup("plain")),
        ] {
            one.send(&message, None).unwrap();
            assert_eq!(other.receive().unwrap().unwrap().0, message);
        }
        drop(one);
        assert!(other.receive().unwrap().is_none());
    }

    #[test]
    fn a_descriptor_travels_beside_its_message() {
        let (one, other) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        one.send(&Message::FuseDevice, Some(file.as_fd())).unwrap();
        let (_, descriptor) = other.receive().unwrap().unwrap();
        let (sent, got) =
            (rustix::fs::fstat(&file).unwrap(), rustix::fs::fstat(descriptor.unwrap()).unwrap());
        assert_eq!((sent.st_dev, sent.st_ino), (got.st_dev, got.st_ino));
    }

    #[test]
    fn malformed_messages_are_refused_and_long_ones_cut() {
        for bytes in [&b""[..], b"Z", b"Px", b"F", b"F!text"] {
            assert!(Message::decode(bytes).is_err(), "{bytes:?}");
        }
        let (one, other) = Channel::pair().unwrap();
        one.send(&Message::Warning("x".repeat(10_000)), None).unwrap();
        assert!(
            matches!(other.receive().unwrap().unwrap().0, Message::Warning(text) if text.len() == LONGEST - 1)
        );
    }
}

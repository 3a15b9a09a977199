//! The commands: what each does to the mount and what it answers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Errno, Error, Result};
use crate::fuse::Counters;
use crate::fuse::handler::Handler;
use crate::fuse::tell::{Tell, tell};
use crate::union::Union;

/// What commands work on.
#[derive(Clone, Debug)]
pub struct Live {
    union: Arc<Union>,
    counters: Arc<Counters>,
    /// None: requests come through a library, which hands no files over.
    handler: Option<Arc<Handler>>,
    kernel: Arc<dyn Tell>,
    /// What was decided at the start.
    modes: String,
}

impl Live {
    /// Puts together what a mount consists of.
    pub(crate) fn new(
        union: Arc<Union>,
        counters: Arc<Counters>,
        handler: Option<Arc<Handler>>,
        kernel: Arc<dyn Tell>,
        modes: String,
    ) -> Self {
        Self { union, counters, handler, kernel, modes }
    }

    /// Returns the counters as text: what `stats` answers.
    pub fn stats(&self) -> String {
        format!("{}{}", self.counters.read().text(), self.union.stats().text())
    }

    /// Does what the words say and returns what is to be shown.
    pub(super) fn command(&self, words: &[&[u8]]) -> Result<Vec<u8>> {
        match words {
            [b"stats"] => Ok(self.stats().into_bytes()),
            [b"stats", b"--json"] => {
                let (requests, union) = (self.counters.read().json(), self.union.stats().json());
                Ok(format!("{{{requests},{union}}}\n").into_bytes())
            }
            [b"layers"] => {
                let mut text = self.union.layers();
                text.extend_from_slice(self.modes.as_bytes());
                Ok(text)
            }
            [b"role", device, ino] => {
                let number = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                let identity = number(device).zip(number(ino)).ok_or(Errno::INVAL)?;
                Ok(self.union.role(identity).unwrap_or_default().as_bytes().to_vec())
            }
            [b"flush"] => self.union.sync().map(|()| Vec::new()),
            [b"rotate", upper, work] => {
                let (upper, work) = (Path::new(OsStr::from_bytes(upper)), Path::new(OsStr::from_bytes(work)));
                match &self.handler {
                    Some(handler) => handler.rotate(upper, work),
                    None => self.union.rotate(upper, work),
                }?;
                Ok(self.union.layers())
            }
            [b"reload"] => {
                tell(&*self.kernel, &self.union.reload()?)?;
                Ok(Vec::new())
            }
            _ => Err(Error::new(Errno::INVAL)
                .during("do", words.join(&b' '))
                .hint("this server knows: stats [--json], layers, flush, reload, rotate")),
        }
    }
}

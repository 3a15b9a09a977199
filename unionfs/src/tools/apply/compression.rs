//! How a layer is compressed: told by its first bytes, never by its name.

use std::io::{self, Cursor, Read};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use crate::error::{Errno, Error, Result};

/// Longest mark of a compression, in bytes.
const MARK: usize = 6;

/// Returns the archive in `input`, without its compression.
///
/// # Errors
/// A compression that is not known here.
pub(super) fn open(mut input: Box<dyn Read>) -> Result<Box<dyn Read>> {
    let mut mark = Vec::new();
    input
        .by_ref()
        .take(MARK as u64)
        .read_to_end(&mut mark)
        .map_err(|error| Error::from(error).during("read", "the layer"))?;
    let whole = Cursor::new(mark.clone()).chain(input);
    match mark.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(io::BufReader::new(whole)))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Ok(Box::new(Zstd { input: Some(io::BufReader::new(Box::new(whole))), frame: None }))
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Err(unknown("xz")),
        [b'B', b'Z', b'h', ..] => Err(unknown("bzip2")),
        _ => Ok(Box::new(io::BufReader::with_capacity(1 << 17, whole))),
    }
}

fn unknown(name: &'static str) -> Error {
    Error::new(Errno::OPNOTSUPP)
        .during("read a layer compressed by", name)
        .hint("layers are compressed by gzip or zstd; decompress it and pass it on standard input")
}

type Source = io::BufReader<Box<dyn Read>>;

/// A sequence of zstd frames.
struct Zstd {
    input: Option<Source>,
    frame: Option<StreamingDecoder<Source, ruzstd::decoding::FrameDecoder>>,
}

impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                let got = frame.read(buffer)?;
                if got > 0 || buffer.is_empty() {
                    return Ok(got);
                }
                self.input = self.frame.take().map(StreamingDecoder::into_inner);
            }
            let Some(input) = &mut self.input else { return Ok(0) };
            if !skip_to_frame(input)? {
                return Ok(0);
            }
            if let Some(input) = self.input.take() {
                let frame = StreamingDecoder::new(input).map_err(io::Error::other)?;
                self.frame = Some(frame);
            }
        }
    }
}

/// Passes over frames that hold no data, such as the tables of layers that can be read in parts; false at the end.
fn skip_to_frame(input: &mut Source) -> io::Result<bool> {
    loop {
        let mark = peek(input)?;
        match mark {
            None => return Ok(false),
            Some([0x50..=0x5f, 0x2a, 0x4d, 0x18]) => {
                let mut header = [0; 8];
                input.read_exact(&mut header)?;
                let [.., a, b, c, d] = header;
                let length = u64::from(u32::from_le_bytes([a, b, c, d]));
                if io::copy(&mut input.by_ref().take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Some(_) => return Ok(true),
        }
    }
}

/// Returns the next four bytes without taking them; none at the end.
fn peek(input: &mut Source) -> io::Result<Option<[u8; 4]>> {
    use std::io::BufRead as _;
    let buffered = input.fill_buf()?;
    if buffered.is_empty() {
        return Ok(None);
    }
    if let Some(mark) = buffered.first_chunk::<4>() {
        return Ok(Some(*mark));
    }
    // At the end of a buffer: put what is there before what follows.
    let mut mark = Vec::new();
    input.by_ref().take(4).read_to_end(&mut mark)?;
    let found = mark.first_chunk::<4>().copied().ok_or(io::ErrorKind::UnexpectedEof)?;
    let rest = std::mem::replace(input, io::BufReader::new(Box::new(io::empty())));
    *input = io::BufReader::new(Box::new(Cursor::new(mark).chain(rest)));
    Ok(Some(found))
}

//! The mark of a copied-up file that is not safe on the disk yet: what it says, as bytes.
//!
//! It is a note in the value of the kernel's mark `metacopy`, or a mark of its own beside that, where its value may have to
//! stay as it is: to everybody else the data is still that of the lower. One attribute, because on ext4 each change of one
//! that does not fit into the inode is a change of a block. What
//! the upper file holds counts only for the server that wrote the mark, and after its death only if nothing that was
//! written can have been lost: all data had been copied, and the same kernel has the same mount of the upper.

/// Name of the mark where it is beside the kernel's marks, which ignores it.
pub const UNFINISHED: &str = "unfinished";

/// The form of the value, its first byte.
const FORM: u8 = 1;
const LENGTH: usize = 2 + 16 + 8 + 8;

/// How much of the data the upper file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Some ranges.
    Ranges,
    /// All of it, written but maybe not on the disk.
    Whole,
}

/// Who wrote the mark: a server, on one mount of the upper, below one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The kernel's identifier of this boot; all zero if it is not known.
    pub boot: [u8; 16],
    /// The number of the upper's mount that no other mount of this boot ever has; 0 if the kernel has none.
    pub mount: u64,
    /// A number drawn at random by the server.
    pub server: u64,
}

impl Writer {
    /// Returns it as it is to a store, which is on another mount each time and says itself since when it lost nothing.
    pub fn since(self, epoch: [u8; 16]) -> Self {
        Self { boot: epoch, mount: 1, ..self }
    }

    /// Returns whether all that `self` wrote through the page cache is still to be read there by `other`.
    pub fn outlives_in(&self, other: &Self) -> bool {
        self.mount != 0 && self.boot != [0; 16] && (self.boot, self.mount) == (other.boot, other.mount)
    }
}

/// The mark's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// How much is there.
    pub extent: Extent,
    /// Who says so.
    pub writer: Writer,
}

impl Unfinished {
    /// Returns the value to store.
    pub fn encode(&self) -> Vec<u8> {
        let whole = u8::from(self.extent == Extent::Whole);
        let Writer { boot, mount, server } = &self.writer;
        [&[FORM, whole][..], boot, &mount.to_le_bytes(), &server.to_le_bytes()].concat()
    }

    /// Reads a value; `None` for what this version does not know: such a file counts as not whole.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (&form, &whole) = (value.first()?, value.get(1)?);
        if form != FORM || whole > 1 || value.len() != LENGTH {
            return None;
        }
        let number = |at: usize| Some(u64::from_le_bytes(value.get(at..at + 8)?.try_into().ok()?));
        let boot = value.get(2..18)?.try_into().ok()?;
        let extent = if whole == 1 { Extent::Whole } else { Extent::Ranges };
        Some(Self { extent, writer: Writer { boot, mount: number(18)?, server: number(26)? } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITER: Writer = Writer { boot: [7; 16], mount: 0x1_0000_0001, server: u64::MAX - 1 };

    #[test]
    fn a_mark_reads_back_and_nothing_else_is_one() {
        for extent in [Extent::Ranges, Extent::Whole] {
            let mark = Unfinished { extent, writer: WRITER };
            let value = mark.encode();
            assert_eq!(Unfinished::parse(&value), Some(mark));
            for len in 0..value.len() {
                assert_eq!(Unfinished::parse(&value[..len]), None, "{len}");
            }
            assert_eq!(Unfinished::parse(&[value.as_slice(), b"x"].concat()), None);
            assert_eq!(Unfinished::parse(&[&[2], &value[1..]].concat()), None);
        }
    }

    #[test]
    fn what_was_written_outlives_its_server_only_below_the_same_kernel_and_mount() {
        let other = |boot, mount| Writer { boot, mount, server: 1 };
        for (writer, now, want) in [
            (WRITER, other([7; 16], WRITER.mount), true),
            (WRITER, other([8; 16], WRITER.mount), false),
            (WRITER, other([7; 16], 2), false),
            (other([7; 16], 0), other([7; 16], 0), false),
            (other([0; 16], 3), other([0; 16], 3), false),
        ] {
            assert_eq!(writer.outlives_in(&now), want, "{writer:?} {now:?}");
        }
    }
}

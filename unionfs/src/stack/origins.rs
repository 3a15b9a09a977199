//! Which inode number an origin speaks of: the lower object's, without looking for the object.
//!
//! So a copied-up file needs no mark that keeps its number: where handles hold inode numbers, its origin says it. That
//! spares a call for each copy-up, and on ext4 a block, because one more attribute does not fit into the inode.

use std::sync::Arc;

use super::LayerStack;
use super::lower::LowerLayer;
use super::marks;
use crate::ondisk::origin::{self, Parts};

/// The file systems of the lowers whose handles hold inode numbers, by what their records name them.
#[derive(Clone, Debug)]
pub(crate) struct Origins(Arc<[FileSystem]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileSystem {
    device: u64,
    uuid: [u8; 16],
    numbered: bool,
}

impl Origins {
    /// Learns them from the layers.
    pub(crate) fn of(lowers: &[LowerLayer]) -> Self {
        let mut known: Vec<FileSystem> = Vec::new();
        for layer in lowers {
            let (device, uuid) = (layer.identity().0, *layer.uuid());
            let found = FileSystem { device, uuid, numbered: layer.handles_have_numbers };
            if !known.contains(&found) {
                known.push(found);
            }
        }
        Self(known.into())
    }

    fn file_system(&self, uuid: &[u8; 16]) -> Option<&FileSystem> {
        let named = |file_system: &&FileSystem| file_system.uuid == *uuid;
        match &*self.0 {
            // There is no other: the record may have been written with another `uuid=`.
            [only] => Some(only),
            several if several.iter().filter(named).count() == 1 => several.iter().find(named),
            _ => None,
        }
    }

    /// Returns the device of the file system that records name so; `None` where that cannot be told.
    pub(super) fn device_of(&self, uuid: &[u8; 16]) -> Option<u64> {
        self.file_system(uuid).map(|file_system| file_system.device)
    }

    /// Returns device and inode number of the object that a record speaks of; `None` where that cannot be told.
    fn find(&self, record: &[u8]) -> Option<(u64, u64)> {
        let Parts { uuid, kind, handle } = origin::parts(record)?;
        let file_system = self.file_system(&uuid)?;
        let ino = origin::ino_of_handle(kind, handle).filter(|_| file_system.numbered)?;
        Some((file_system.device, ino))
    }
}

impl LayerStack {
    /// Returns the inode number that the lower object shows which a record speaks of; `None` where that cannot be told.
    pub(crate) fn origin_ino(&self, record: &[u8]) -> Option<u64> {
        self.origins.find(record).map(|(device, ino)| self.shown_ino(device, ino))
    }

    /// Returns the inode number that an object is shown with by its marks, which `mark` reads.
    pub(crate) fn marked_ino(&self, mark: impl Fn(&str) -> Option<Vec<u8>>) -> Option<u64> {
        let stored = mark(marks::INO).and_then(|value| marks::parse_ino(&value));
        stored.or_else(|| self.origin_ino(&mark("origin")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_one_of_several_file_systems_is_told_by_its_uuid() {
        let of = |device, uuid, numbered| FileSystem { device, uuid: [uuid; 16], numbered };
        let handle = [7_u32.to_ne_bytes(), 99_u32.to_ne_bytes()].concat();
        let record = |uuid| origin::record(1, &handle, &[uuid; 16]).unwrap();
        let find = |known: &[FileSystem], uuid| Origins(known.into()).find(&record(uuid));
        let several = [of(1, 0, true), of(2, 5, true), of(3, 0, true), of(4, 6, false)];
        assert_eq!(find(&several, 5), Some((2, 7)));
        assert_eq!(find(&several, 0), None, "two have none");
        assert_eq!(find(&several, 6), None, "its handles hold no numbers");
        assert_eq!(find(&several, 8), None);
        assert_eq!(find(&several[..1], 8), Some((1, 7)), "there is no other");
        assert_eq!(Origins(Arc::default()).find(&record(0)), None);
    }
}

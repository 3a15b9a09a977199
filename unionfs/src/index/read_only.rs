//! An index that is only read: which object in it stands for a file of the layers.
//!
//! The upper is then the topmost of the layers, and its index a directory beside it.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::lower_record;
use crate::error::{Errno, Result};
use crate::lookup;
use crate::name::FileName;
use crate::ondisk::origin;
use crate::stack::LayerStack;
use crate::stack::lower::{LowerDir, LowerName};
use crate::stack::marks::{self, FileMarks};
use crate::sys::Stat;

/// An object in the index that stands for a file.
#[derive(Debug)]
pub(crate) struct Standing {
    /// Where it is.
    pub place: LowerName,
    /// Its attributes, with the number of links to show.
    pub stat: Stat,
    /// That number less its own.
    pub difference: i64,
    /// Where its data is, if it holds only attributes.
    pub data: Option<LowerName>,
}

/// A file with several names as it was found in a layer.
#[derive(Debug)]
pub(crate) struct Linked<'a> {
    /// The directory in the layer.
    pub dir: &'a Arc<LowerDir>,
    /// The name in it.
    pub name: &'a FileName,
    /// Its attributes.
    pub stat: &'a Stat,
    /// Where its data is, if it holds only attributes.
    pub data: Option<&'a LowerName>,
}

impl Linked<'_> {
    /// Returns what stands for the file in `index`, the directory beside the topmost layer.
    pub(crate) fn standing(&self, stack: &LayerStack, index: &Arc<LowerDir>) -> Result<Option<Standing>> {
        let on_upper = self.dir.layer == index.layer;
        let record = if on_upper {
            self.marks(stack)?.origin
        } else {
            lower_record(stack, self.dir, self.name.as_bytes())?
        };
        let Some(record) = record else { return Ok(None) };
        let entry = FileName::new(&origin::index_name(&record))?;
        let mut stat = match stack.lower(index)?.stat(&stack.fds, index, entry.as_bytes()) {
            Ok(stat) if !stat.is_whiteout() && !stat.is_dir() => stat,
            Err(error) if !error.is(Errno::NOENT) => return Err(error),
            _ => return Ok(None),
        };
        // An index that was lost or belongs to another upper does not speak of this file.
        if on_upper && (stat.dev, stat.ino) != (self.stat.dev, self.stat.ino) {
            return Ok(None);
        }
        let place = LowerName { dir: Arc::clone(index), name: entry };
        let difference = Linked { dir: index, name: &place.name, ..*self }.marks(stack)?.nlink.unwrap_or(-1);
        let own = || LowerName { dir: Arc::clone(self.dir), name: self.name.clone() };
        let data = if on_upper {
            stat.size = self.stat.size;
            self.data.cloned()
        } else if let Some(size) = lookup::attributes_only(stack, index, place.name.as_bytes(), &stat)? {
            let data = self.data.cloned().unwrap_or_else(own);
            if size == lookup::Size::OfData {
                stat.size = stack.stat_of(&data)?.size;
            }
            Some(data)
        } else {
            None
        };
        stat.nlink = u32::try_from(i64::from(stat.nlink) + difference).unwrap_or(0);
        Ok(Some(Standing { place, stat, difference, data }))
    }

    fn marks(&self, stack: &LayerStack) -> Result<FileMarks> {
        let layer = stack.lower(self.dir)?;
        let fd = layer.dir_fd(&stack.fds, self.dir)?;
        let name = self.name.as_bytes();
        marks::read_file_marks(layer.attributes(), fd.as_fd(), name, stack.namespace, stack.follow)
    }
}

//! A file that the upper has, other than a directory: what its marks say, and what becomes of it if a server that was killed
//! has left it unfinished.

use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::ondisk::Redirect;
use crate::stack::LayerStack;
use crate::stack::lower::LowerName;
use crate::stack::marks::{self, FileMarks};
use crate::stack::settle;
use crate::stack::upper::UpperLayer;
use crate::sys::Stat;

/// What the upper has under a name. No mark is one of another server.
#[derive(Debug)]
pub(crate) struct OnUpper {
    /// Its attributes.
    pub stat: Stat,
    /// Its marks.
    pub marks: FileMarks,
    /// Where its data is, if it holds only attributes.
    pub data: Option<LowerName>,
}

/// What a file on the upper holds, by its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// Its data, or as much of it as this server knows of.
    Data,
    /// Attributes only.
    Attributes,
    /// What another server has left.
    Remains,
}

impl Holds {
    fn of(marks: &FileMarks, upper: &UpperLayer) -> Self {
        match &marks.unfinished {
            _ if !marks.metacopy => Self::Data,
            None => Self::Attributes,
            // We know what is where, and finish it.
            Some(mark) if settle::is_own(mark, upper.writer) => Self::Data,
            Some(_) => Self::Remains,
        }
    }
}

/// Finds out about the file `name` in `dir`, a directory of the upper or its index. `find_data` tells where the data of a
/// metacopy is, given its redirect.
///
/// # Errors
/// Of the layers; what `find_data` answers.
pub(crate) fn on_upper(
    stack: &LayerStack,
    (dir, name): (BorrowedFd<'_>, &[u8]),
    mut stat: Stat,
    find_data: impl FnOnce(Option<Redirect>) -> Result<LowerName>,
) -> Result<OnUpper> {
    let read_marks = || marks::read_file_marks(stack.attributes(), dir, name, stack.namespace, stack.follow);
    let upper = stack.upper()?;
    let mut marks = read_marks()?;
    if Holds::of(&marks, upper) == Holds::Remains && !upper.lease.is_held() {
        settle::wait_for_finisher(upper.root_fd());
        stat = upper.stat_at(dir, name)?;
        marks = read_marks()?;
    }
    if Holds::of(&marks, upper) == Holds::Data {
        return Ok(OnUpper { stat, marks, data: None });
    }
    let data = find_data(marks.redirect.take())?;
    if Holds::of(&marks, upper) == Holds::Remains {
        // One at a time: a lookup of another name of the file may have settled it meanwhile, and it may have been written to
        // since.
        let _alone = upper.settling.lock();
        marks = read_marks()?;
        if let (Holds::Remains, Some(mark)) = (Holds::of(&marks, upper), &marks.unfinished) {
            let below = stack.stat_of(&data)?;
            let whole = settle::is_whole(mark, upper.writer);
            let how = (stack.attributes(), stack.namespace, upper.durability);
            settle::settle(dir, name, how, whole, &below)?;
            marks = read_marks()?;
        }
        stat = upper.stat_at(dir, name)?;
    }
    let data = Some(data).filter(|_| Holds::of(&marks, upper) == Holds::Attributes);
    Ok(OnUpper { stat, marks, data })
}

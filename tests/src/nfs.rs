//! What an NFS client does with names of open files, imitated where there is none.
//!
//! A name that is removed or replaced while a descriptor leads to it, one for reading or writing as well as one that is only a
//! place (`O_PATH`), gets the form `.nfs` and 24 digits in its directory until the last such descriptor is closed. A file that
//! is open by another of its names is not meant: what counts is the name. No rename with flags is known.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::sys::calls::{Answer, Call, Listener, listen, statfs_of_kind};

/// Bytes of a path at most.
const PATH: usize = 4096;

/// Calls `act` where what lies below `root` looks as if it lay on NFS to this process, which alone uses it.
pub fn imitated<T: Send>(root: &Path, act: impl FnOnce() -> T + Send) -> T {
    let numbers =
        [libc::SYS_unlinkat, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_close, libc::SYS_fstatfs];
    let client = Client { root: root.canonicalize().unwrap(), kept: 0 };
    let (give, take) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || client.serve(&take.recv().unwrap()));
        let acts = scope.spawn(move || {
            give.send(listen(&numbers).unwrap()).unwrap();
            act()
        });
        match acts.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Returns whether a path ends with a kept name.
pub fn is_kept(path: &Path) -> bool {
    path.file_name().is_some_and(|name| unionfs::ondisk::is_silly_name(name.as_bytes()))
}

struct Client {
    root: PathBuf,
    /// How many names it kept so far.
    kept: u64,
}

impl Client {
    fn serve(mut self, listener: &Listener) {
        while let Some(call) = listener.next().unwrap() {
            let answer = self.answer(&call).unwrap_or_else(|error| {
                Answer::Failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
            });
            listener.answer(call, answer).unwrap();
        }
    }

    fn answer(&mut self, call: &Call) -> std::io::Result<Answer> {
        let [a, b, c, d, e, _] = call.args;
        match call.number {
            libc::SYS_close => self.close(&descriptor(a)?)?,
            libc::SYS_fstatfs => return self.statfs(a, b),
            libc::SYS_unlinkat if c & libc::AT_REMOVEDIR as u64 == 0 => {
                let name = path_at(a, b)?;
                if self.keeps(&name) {
                    self.keep(&name)?;
                    return Ok(Answer::Done);
                }
            }
            libc::SYS_renameat | libc::SYS_renameat2 => {
                let (from, to) = (path_at(a, b)?, path_at(c, d)?);
                if call.number == libc::SYS_renameat2 && e != 0 && to.starts_with(&self.root) {
                    return Ok(Answer::Failed(Errno::EINVAL));
                }
                if self.keeps(&to) && number_of(&from) != number_of(&to) {
                    self.keep(&to)?;
                }
            }
            _ => {}
        }
        Ok(Answer::Made)
    }

    /// Returns whether the name cannot just go.
    fn keeps(&self, name: &Path) -> bool {
        let is_file = fs::symlink_metadata(name).is_ok_and(|found| !found.is_dir());
        name.starts_with(&self.root) && is_file && descriptors_of(name) > 0
    }

    fn keep(&mut self, name: &Path) -> std::io::Result<()> {
        self.kept += 1;
        fs::rename(name, name.with_file_name(format!(".nfs{:024x}", self.kept)))
    }

    /// Removes a kept name with the last descriptor, which is about to be closed.
    fn close(&self, at: &Path) -> std::io::Result<()> {
        match fs::read_link(at) {
            Ok(name) if is_kept(&name) && name.starts_with(&self.root) && descriptors_of(&name) == 1 => {
                fs::remove_file(name)
            }
            _ => Ok(()),
        }
    }

    fn statfs(&self, fd: u64, buffer: u64) -> std::io::Result<Answer> {
        let at = descriptor(fd)?;
        if !fs::read_link(&at).is_ok_and(|path| path.starts_with(&self.root)) {
            return Ok(Answer::Made);
        }
        let found = statfs_of_kind(&CString::new(at.as_os_str().as_bytes())?, libc::NFS_SUPER_MAGIC)?;
        fs::OpenOptions::new().write(true).open("/proc/self/mem")?.write_all_at(&found, buffer)?;
        Ok(Answer::Done)
    }
}

/// Returns the path of a descriptor's link in /proc.
fn descriptor(fd: u64) -> std::io::Result<PathBuf> {
    // An int in a register of 64 bits.
    let fd = u32::try_from(fd & u64::from(u32::MAX)).map_err(std::io::Error::other)?;
    Ok(PathBuf::from(format!("/proc/self/fd/{}", fd.cast_signed())))
}

/// Returns the path of a name that a call was given, without symbolic links as far as its directory is a descriptor.
fn path_at(fd: u64, name: u64) -> std::io::Result<PathBuf> {
    let mut bytes = vec![0; PATH];
    let len = fs::File::open("/proc/self/mem")?.read_at(&mut bytes, name)?;
    bytes.truncate(len);
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(Errno::ENAMETOOLONG)?;
    let name = Path::new(std::ffi::OsStr::from_bytes(&bytes[..end]));
    Ok(fs::read_link(descriptor(fd)?).unwrap_or_default().join(name))
}

fn number_of(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|found| found.ino())
}

/// Returns how many descriptors of this process were opened by a name.
fn descriptors_of(name: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == name)).count()
}

//! The container's root by descriptor: the only way from a path of the container to an object.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{During, Error, Result, shown};

/// A directory that is the root of every path looked up in it.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

/// Links followed for a file that does not exist yet, as many as the kernel follows.
const LINKS: usize = 40;

/// How often a look-up that a rename disturbed is tried again.
const TRIES: usize = 16;

impl Root {
    /// Opens a directory as root.
    pub fn open_at(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .during(format_args!("open the root {}", shown(path)))?;
        Ok(Self { fd })
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens a path of the container; links are followed inside the root.
    pub fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 1..TRIES {
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
        rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Returns whether a descriptor is the root itself.
    pub fn is_root(&self, fd: &OwnedFd) -> bool {
        match (rustix::fs::fstat(&self.fd), rustix::fs::fstat(fd)) {
            (Ok(root), Ok(other)) => (root.st_dev, root.st_ino) == (other.st_dev, other.st_ino),
            _ => true,
        }
    }

    /// Opens, or makes, a directory directly below the root which must not be a link.
    pub fn standard_directory(&self, name: &str) -> Result<OwnedFd> {
        let open = || open_beside(&self.fd, OsStr::new(name), OFlags::PATH | OFlags::DIRECTORY);
        match open() {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755))
                    .during(format_args!("make /{name}"))?;
                open().during(format_args!("open /{name}"))
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(Error::setup(format!("cannot use /{name} of the root: it is not a directory")))
            }
            result => result.during(format_args!("open /{name}")),
        }
    }

    /// Opens a directory, making what is missing.
    pub fn ensure_directory(&self, path: &Path) -> Result<OwnedFd> {
        let mut prefix = PathBuf::from("/");
        let mut at = self.fd.try_clone().during("duplicate a descriptor")?;
        for component in path.components() {
            let Component::Normal(name) = component else {
                if component == Component::ParentDir {
                    prefix.push("..");
                    at = self.directory(&prefix).during(format_args!("open {}", shown(&prefix)))?;
                }
                continue;
            };
            prefix.push(name);
            at = match self.directory(&prefix) {
                Err(Errno::NOENT) => {
                    // By descriptor of the parent: a path could be led elsewhere between look-up and mkdir.
                    rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))
                        .during(format_args!("make directory {} in the container", shown(&prefix)))?;
                    self.directory(&prefix)
                }
                result => result,
            }
            .during(format_args!("open directory {} in the container", shown(&prefix)))?;
        }
        Ok(at)
    }

    fn directory(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Opens something that is not a directory, making an empty file and its directories when nothing is there.
    pub fn ensure_file(&self, path: &Path) -> Result<OwnedFd> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            match self.open(&path, OFlags::PATH) {
                Err(Errno::NOENT) => {}
                result => {
                    return result
                        .during(format_args!("open {} in the container", shown(&path)))
                        .and_then(|fd| no_directory(fd, &path));
                }
            }
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { break };
            let directory = self.ensure_directory(parent)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o644)) {
                Ok(_) => {}
                // A link to nothing: what it points to is to be made.
                Err(Errno::EXIST) => {
                    let link = rustix::fs::readlinkat(&directory, name, Vec::new())
                        .during(format_args!("read link {} in the container", shown(&path)))?;
                    path = parent.join(OsStr::from_bytes(link.as_bytes()));
                }
                Err(error) => {
                    return Err(error).during(format_args!("make {} in the container", shown(&path)));
                }
            }
        }
        Err(Error::setup(format!("cannot open {} in the container: too many links", shown(&path))))
    }

    /// Reads a regular file of the container, up to a limit; none when it does not exist or is something else.
    pub fn read_regular(&self, path: &Path, limit: u64) -> Option<Vec<u8>> {
        use std::io::Read;
        // Without NONBLOCK a fifo in place of the file would hang the start.
        let fd = self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return None;
        }
        let mut text = Vec::new();
        std::fs::File::from(fd).take(limit).read_to_end(&mut text).ok()?;
        Some(text)
    }
}

/// Opens a name directly in a directory, without following a link.
pub(crate) fn open_beside(directory: impl AsFd, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn no_directory(fd: OwnedFd, path: &Path) -> Result<OwnedFd> {
    let stat = rustix::fs::fstat(&fd).during(format_args!("look at {} in the container", shown(path)))?;
    if FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(Error::setup(format!("cannot mount a file at {}: it is a directory", shown(path))));
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside_the_root() {
        let outer = tempfile::tempdir().unwrap();
        let root_path = outer.path().join("root");
        std::fs::create_dir_all(root_path.join("etc")).unwrap();
        symlink("/../../escape", root_path.join("link")).unwrap();
        symlink("../run/new", root_path.join("etc/conf")).unwrap();
        let root = Root::open_at(&root_path).unwrap();
        root.ensure_file(Path::new("/etc/conf")).unwrap();
        assert!(root_path.join("run/new").is_file());
        root.ensure_file(Path::new("/link")).unwrap();
        assert!(root_path.join("escape").is_file());
        assert!(!outer.path().join("escape").exists());
        root.ensure_directory(Path::new("/a/../b/c")).unwrap();
        assert!(root_path.join("b/c").is_dir());
    }

    #[test]
    fn a_standard_directory_is_no_link() {
        let outer = tempfile::tempdir().unwrap();
        symlink("/tmp", outer.path().join("dev")).unwrap();
        let root = Root::open_at(outer.path()).unwrap();
        assert!(root.standard_directory("dev").is_err());
        root.standard_directory("proc").unwrap();
        assert!(root.is_root(&root.open(Path::new("/proc/.."), OFlags::PATH).unwrap()));
    }

    #[test]
    fn only_regular_files_are_read() {
        let outer = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, outer.path().join("fifo"), Mode::from_raw_mode(0o600)).unwrap();
        std::fs::write(outer.path().join("file"), "abcdef").unwrap();
        let root = Root::open_at(outer.path()).unwrap();
        assert_eq!(root.read_regular(Path::new("/file"), 3), Some(b"abc".to_vec()));
        for none in ["/fifo", "/missing", "/"] {
            assert_eq!(root.read_regular(Path::new(none), 3), None, "{none}");
        }
    }
}

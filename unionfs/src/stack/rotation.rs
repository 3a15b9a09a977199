//! Another upper for a live stack: which one may be taken, and the stack that then is.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::lower::{LowerDir, LowerLayer};
use super::origins::Origins;
use super::owners::Owners;
use super::upper::UpperLayer;
use super::{LayerStack, absolute, hide_paths, open_upper};
use crate::error::{Errno, Error, Result};
use crate::ondisk::record::RecordForm;
use crate::options::{MountOptions, XattrPermissions};
use crate::sys;

/// What may stand in a workdir that nobody has used yet, or that an earlier attempt has: empty directories.
const OF_A_WORKDIR: [&[u8]; 2] = [b"work", b"index"];

impl LayerStack {
    /// Returns whether the layer of this number was an upper once.
    pub(crate) fn was_upper(&self, number: usize) -> bool {
        self.lowers.get(number.wrapping_sub(self.top)).is_some_and(|layer| layer.was_upper)
    }

    /// Opens the upper that is to take over. `options` are those of the mount that then is; `used` are the directories
    /// that it must lie beside.
    ///
    /// # Errors
    /// It cannot take over: it is not empty, in use, on another file system than the present one, or part of a layer.
    pub(crate) fn open_next_upper(&self, options: &MountOptions, used: &[&PathBuf]) -> Result<UpperLayer> {
        let now = self.upper()?;
        let (Some(path), Some(work)) = (&options.upperdir, &options.workdir) else {
            return Err(Error::new(Errno::INVAL).during("rotate to", "no upper layer"));
        };
        let bytes = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
        let (root, stat) = UpperLayer::open_root(path)?;
        if (stat.dev, stat.ino) == now.identity() {
            return Err(Error::new(Errno::BUSY)
                .during("rotate to", bytes(path))
                .hint("this is the upper layer already"));
        }
        check_places(options, used)?;
        if stat.dev != now.identity().0 {
            return Err(Error::new(Errno::XDEV)
                .during("rotate to", bytes(path))
                .hint("the new upperdir must be on the file system of the present one"));
        }
        check_empty(root.as_fd(), path, &[])?;
        check_workdir(work)?;
        let mut notices = Vec::new();
        let mut options = options.clone();
        options.xattr_permissions = match now.owners {
            Owners::Inodes => XattrPermissions::Off,
            Owners::Records(RecordForm::Security) => XattrPermissions::Security,
            Owners::Records(_) => XattrPermissions::User,
        };
        let next = open_upper(&options, &self.lowers, &mut notices)?.ok_or(Error::new(Errno::ROFS))?;
        if next.workdir.is_shared() {
            return Err(Error::new(Errno::BUSY)
                .during("use workdir", bytes(work))
                .hint("another mount uses it"));
        }
        if next.features.namespace != now.features.namespace || next.owners != now.owners {
            return Err(Error::new(Errno::OPNOTSUPP)
                .during("rotate to", bytes(path))
                .hint("it keeps marks or owners in other attributes than the present upper"));
        }
        Ok(next)
    }

    /// Returns the stack in which `next` is the upper and the upper of now the topmost lower.
    pub(crate) fn rotated(&self, next: UpperLayer, options: &MountOptions) -> Result<Self> {
        let now = self.upper()?;
        let top = self.upper_number();
        if top == 0 {
            return Err(Error::new(Errno::NOSPC)
                .during("rotate", "a mount rotated too often")
                .hint("mount anew"));
        }
        let sunk = LowerLayer::of_upper(now, options)?;
        let (root, opaque) = sunk.root_dir(top, self.namespace)?;
        let mut lowers = vec![sunk];
        lowers.extend(self.lowers.iter().cloned());
        let new = [&options.upperdir, &options.workdir].into_iter().flatten();
        let hidden: Vec<PathBuf> = options.hidden.iter().chain(new).cloned().collect();
        hide_paths(&mut lowers, &hidden)?;
        let mut roots = vec![root];
        if !opaque {
            roots.extend(self.roots.iter().cloned());
        }
        Ok(Self {
            numbers: self.next_numbers(&next)?,
            upper: Some(std::sync::Arc::new(next)),
            origins: Origins::of(&lowers),
            lowers,
            top,
            roots,
            data_roots: self.data_roots.clone(),
            fds: std::sync::Arc::clone(&self.fds),
            namespace: self.namespace,
            follow: self.follow,
            xino: self.xino,
            devices: std::sync::Arc::clone(&self.devices),
        })
    }

    /// Returns a line for each layer, topmost first.
    pub(crate) fn describe(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut line = |role: &str, dev: u64, path: &Path, more: &str| {
            let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
            text.extend_from_slice(format!("{role} {major}:{minor} ").as_bytes());
            for byte in path.as_os_str().as_encoded_bytes() {
                match byte {
                    b'\n' | b'\\' | b'\t' => text.extend(byte.escape_ascii()),
                    _ => text.push(*byte),
                }
            }
            text.extend_from_slice(more.as_bytes());
            text.push(b'\n');
        };
        if let Some(upper) = &self.upper {
            line("upper", upper.identity().0, &upper.path, "");
        }
        for lower in &self.lowers {
            line(
                "lower",
                lower.identity().0,
                &lower.path,
                if lower.was_upper { " (was an upper)" } else { "" },
            );
        }
        if let Some(upper) = &self.upper {
            text.extend_from_slice(upper.features.to_string().as_bytes());
            text.push(b'\n');
        }
        text
    }

    /// Returns the topmost lower.
    pub(crate) fn top_lower(&self) -> Result<&LowerLayer> {
        self.lowers.first().ok_or(Error::new(Errno::IO))
    }

    /// Describes the root of the topmost lower.
    pub(crate) fn top_root(&self) -> Result<std::sync::Arc<LowerDir>> {
        self.roots.first().cloned().ok_or(Error::new(Errno::IO))
    }
}

/// Refuses directories of which one contains the other, and those in or around a directory that is in use.
fn check_places(options: &MountOptions, used: &[&PathBuf]) -> Result<()> {
    let (Some(upper), Some(work)) = (&options.upperdir, &options.workdir) else { return Ok(()) };
    let (upper, work) = (absolute(upper), absolute(work));
    let refuse = |path: &Path, hint: &'static str| {
        Err(Error::new(Errno::INVAL).during("rotate to", path.as_os_str().as_encoded_bytes()).hint(hint))
    };
    if upper.starts_with(&work) || work.starts_with(&upper) {
        return refuse(&upper, "upperdir and workdir must be separate directories, neither inside the other");
    }
    for new in [&upper, &work] {
        if used.iter().map(|used| absolute(used)).any(|used| used.starts_with(new) || new.starts_with(&used))
        {
            return refuse(new, "it must lie beside the present upperdir and workdir, not in or around them");
        }
        if options.lowerdir.iter().any(|lower| absolute(lower).starts_with(new)) {
            return refuse(new, "it contains a lower layer");
        }
    }
    Ok(())
}

fn check_empty(dir: BorrowedFd<'_>, path: &Path, allowed: &[&[u8]]) -> Result<()> {
    let mut stray = None;
    sys::dirents::for_each_name(dir, |entry| {
        if !allowed.contains(&entry.name) {
            stray = Some(entry.name.to_vec());
        }
        Ok(stray.is_none())
    })?;
    match stray {
        None => Ok(()),
        Some(_) => Err(Error::new(Errno::NOTEMPTY)
            .during("rotate to", path.as_os_str().as_encoded_bytes())
            .hint("the directories of a new upper layer must be empty")),
    }
}

/// Refuses a workdir that holds anything of another upper.
fn check_workdir(path: &Path) -> Result<()> {
    let (dir, _) = UpperLayer::open_root(path)?;
    check_empty(dir.as_fd(), path, &OF_A_WORKDIR)?;
    for name in OF_A_WORKDIR {
        match sys::open_at(dir.as_fd(), name, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY, 0) {
            Ok(inner) => check_empty(inner.as_fd(), path, &[])?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(Error::new(errno).during("open in the workdir the directory", name)),
        }
    }
    Ok(())
}

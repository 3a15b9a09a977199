//! The layers of a mount: opened, checked against each other, and probed, before anything is mounted.

pub(crate) mod attributes;
pub(crate) mod catalog;
pub(crate) mod dir_fds;
pub(crate) mod lease;
pub(crate) mod lower;
pub(crate) mod marks;
mod mount_ids;
pub(crate) mod numbers;
mod origins;
pub(crate) mod owners;
pub(crate) mod probe;
mod reload;
pub(crate) mod rotation;
pub(crate) mod settle;
pub(crate) mod sidecar;
pub(crate) mod upper;
pub(crate) mod workdir;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Errno, Error, Result};
use crate::ondisk::Namespace;
use crate::options::{CatalogPolicy, FsyncPolicy, MountOptions, SidecarUse, Verity, Xino};
use crate::request::FileKind;
use crate::sys::{self, Stat};
use attributes::{Attributes, NATIVE};
use catalog::{Blocks, Usable, Viewer};
use dir_fds::DirFds;
use lower::open::Opener;
use lower::{LowerDir, LowerLayer, LowerName};
use marks::Follow;
use numbers::Numbers;
use origins::Origins;
use owners::Owners;
use probe::Features;
use sidecar::Sidecar;
use upper::UpperLayer;
use workdir::Workdir;

/// Directory descriptors kept open at most, beside one for each layer's root.
const DIR_FDS: usize = 384;
/// Number of the topmost lower of a new mount; those that come on top of it are counted down.
const FIRST_TOP: usize = 1 << 14;
/// Inode numbers of the second and later file systems carry the file system's index above this bit.
pub(crate) const FS_SHIFT: u32 = 48;
/// Spreads the high bits of an inode number over the low ones (the golden ratio).
const FOLD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Descriptions of the roots of layers.
type Roots = Vec<Arc<LowerDir>>;

/// All layers of a mount.
#[derive(Debug)]
pub(crate) struct LayerStack {
    /// The writable layer, if the mount is not read-only.
    pub upper: Option<Arc<UpperLayer>>,
    /// The read-only layers, topmost first; at the end those that give contents only.
    pub lowers: Vec<LowerLayer>,
    /// Number of the topmost lower. The following have the next numbers, the upper the one before.
    pub top: usize,
    /// Descriptions of the roots of the lowers, in the same order.
    pub roots: Roots,
    /// Descriptions of the roots of the layers that give contents only.
    pub data_roots: Roots,
    /// The cache of directory descriptors.
    pub fds: Arc<DirFds>,
    /// Where marks are read and written.
    pub namespace: Namespace,
    /// Whether redirects found are followed.
    pub follow: Follow,
    /// How inode numbers of several file systems are kept apart.
    xino: Xino,
    /// Devices in the order in which they were met; the index makes inode numbers distinct.
    devices: Arc<RwLock<Vec<u64>>>,
    /// Which numbers origins speak of.
    origins: Origins,
    /// Numbers of upper objects that can hold no mark, where there are such.
    pub numbers: Option<Arc<Numbers>>,
}

impl LayerStack {
    /// Opens every layer that `options` name. The second value tells facts and fallbacks, a line each.
    ///
    /// # Errors
    /// What is wrong with which directory; nothing is mounted and nothing is left behind.
    pub(crate) fn open(options: &MountOptions) -> Result<(Self, Vec<String>)> {
        let mut notices = Vec::new();
        let userxattr = options.userxattr;
        let mut lowers = Vec::with_capacity(options.lowerdir.len());
        let mut opener = Opener::new(options);
        // Read-only with an upper: it is the topmost of the layers that are read.
        let read_only_upper = options.upperdir.iter().filter(|_| options.is_read_only());
        for path in read_only_upper.chain(&options.lowerdir).chain(&options.datadir) {
            lowers.push(opener.open(path)?);
        }
        use_catalogs(&mut lowers, options, &mut notices)?;
        if lowers.len() == options.datadir.len() {
            return Err(Error::new(Errno::INVAL)
                .during("mount a union of", "no layers")
                .hint("name at least one lower layer: -o lowerdir=DIR"));
        }
        if let (true, Some(_), Some(top)) = (options.is_read_only(), &options.upperdir, lowers.first_mut()) {
            top.epoch = options.upper_epoch;
        }
        if let (true, Some(work), Some(top)) = (options.is_read_only(), &options.workdir, lowers.first_mut())
        {
            top.was_upper = true;
            read_sidecar(work, top, userxattr)?;
        }
        let upper = open_upper(options, &lowers, &mut notices)?.map(Arc::new);
        hide_paths(&mut lowers, &options.hidden)?;
        // No path leads into a store, which is kept apart from the lowers by who serves it.
        if let Some(upper) = upper.as_ref().filter(|_| options.upper_epoch.is_none()) {
            let inside = check_overlap(upper.real_paths(options), &lowers, &mut notices)?;
            hide_paths(&mut lowers, &inside)?;
        }
        let namespace = match &upper {
            Some(upper) => upper.features.namespace.unwrap_or(Namespace::User),
            None => probe::namespace_without_upper(userxattr),
        };
        let names = lowers.len() - options.datadir.len();
        let (roots, data_roots) = describe_roots(&mut lowers, names, FIRST_TOP, namespace)?;
        check_verity(options, &lowers, &mut notices)?;
        let fds = no_fds();
        let follow = if options.follows_redirects() { Follow::Yes } else { Follow::No };
        let devices = Arc::new(RwLock::new(devices_of(upper.as_deref(), &lowers)));
        let (top, xino) = (FIRST_TOP, options.xino);
        let origins = Origins::of(&lowers);
        let mut stack = Self {
            upper,
            lowers,
            top,
            roots,
            data_roots,
            fds,
            namespace,
            follow,
            xino,
            devices,
            origins,
            numbers: None,
        };
        stack.use_numbers(options.workdir.as_deref(), &mut notices);
        Ok((stack, notices))
    }

    /// Returns the writable layer.
    ///
    /// # Errors
    /// EROFS if there is none.
    pub(crate) fn upper(&self) -> Result<&UpperLayer> {
        self.upper.as_deref().ok_or(Error::new(Errno::ROFS))
    }

    /// Returns whether an object of a lower can have marks once it is on the upper: `user.*` attributes are for files and
    /// directories only.
    pub(crate) fn may_be_marked(&self, stat: &Stat) -> bool {
        let Some(upper) = &self.upper else { return false };
        if upper.features.sidecar || upper.features.namespace != Some(Namespace::User) {
            return upper.features.namespace.is_some();
        }
        match stat.kind() {
            FileKind::Regular | FileKind::Directory => true,
            FileKind::Symlink => false,
            // In the place of the others is a file where owners are kept in records.
            _ => !upper.owners.are_inodes(),
        }
    }

    /// Returns where owners and modes of the upper are kept.
    pub(crate) fn upper_owners(&self) -> Owners {
        self.upper.as_ref().map_or(Owners::Inodes, |upper| upper.owners)
    }

    /// Returns where the attributes of upper objects are.
    pub(crate) fn attributes(&self) -> &Attributes {
        self.upper.as_ref().map_or(&NATIVE, |upper| &upper.workdir.attributes)
    }

    /// Returns whether an object of the upper is a whiteout, of any form that takes the place of what it hides.
    pub(crate) fn is_upper_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> bool {
        let empty_file = stat.kind() == FileKind::Regular && stat.size == 0;
        let mark = || self.attributes().get_at(dir, name, &self.namespace.name("whiteout"));
        stat.is_whiteout() || (empty_file && mark().is_ok())
    }

    /// Returns the layer that a description belongs to.
    pub(crate) fn lower(&self, dir: &LowerDir) -> Result<&LowerLayer> {
        self.lowers.get(dir.layer.wrapping_sub(self.top)).ok_or(Error::new(Errno::IO))
    }

    /// Returns the attributes of a lower object.
    pub(crate) fn stat_of(&self, object: &LowerName) -> Result<Stat> {
        self.lower(&object.dir)?.stat(&self.fds, &object.dir, object.name.as_bytes())
    }

    /// Has the index in the workdir read along with an upper that is only read.
    ///
    /// # Errors
    /// There is one, and it cannot be read.
    pub(crate) fn read_index(&mut self, options: &MountOptions) -> Result<()> {
        match (&options.workdir, self.lowers.first_mut()) {
            (Some(work), Some(upper)) if options.is_read_only() && options.index != Some(false) => {
                upper.read_index(open_workdir(work)?.as_fd(), self.top)
            }
            _ => Ok(()),
        }
    }

    /// Returns the index that is read along with an upper that is only read.
    pub(crate) fn index_dir(&self) -> Option<&Arc<LowerDir>> {
        self.lowers.first().and_then(LowerLayer::index)
    }

    /// Returns the number of the upper.
    pub(crate) const fn upper_number(&self) -> usize {
        self.top - 1
    }

    /// Returns the root of the topmost layer that has the number `layer` or a greater one.
    pub(crate) fn root_from(&self, layer: usize) -> Option<&Arc<LowerDir>> {
        self.roots.get(layer.saturating_sub(self.top))
    }

    /// Returns the inode number to show for an object: its own on the first file system, with the file system's index
    /// in the high bits on others.
    pub(crate) fn shown_ino(&self, dev: u64, ino: u64) -> u64 {
        let index = self.device_index(dev);
        if index == 0 || self.xino == Xino::Off {
            return ino;
        }
        let number = match ino >> FS_SHIFT {
            0 => ino,
            // Numbers beyond 48 bits are hashed by their file system already; a collision only makes two objects
            // show one number, never share a node.
            _ if self.xino == Xino::Auto => return ino,
            high => (ino ^ high.wrapping_mul(FOLD)) & ((1 << FS_SHIFT) - 1),
        };
        (index << FS_SHIFT) | number
    }

    /// Returns the index of a device, noting it if it is new.
    pub(crate) fn device_index(&self, dev: u64) -> u64 {
        if let Some(index) = self.devices.read().iter().position(|&known| known == dev) {
            return index as u64;
        }
        let mut devices = self.devices.write();
        let index = devices.iter().position(|&known| known == dev).unwrap_or_else(|| {
            devices.push(dev);
            devices.len() - 1
        });
        index as u64
    }
}

/// Returns the devices of the layers, each once, that of the upper first.
fn devices_of(upper: Option<&UpperLayer>, lowers: &[LowerLayer]) -> Vec<u64> {
    let mut devices: Vec<u64> = upper.iter().map(|upper| upper.identity().0).collect();
    for layer in lowers {
        if !devices.contains(&layer.identity().0) {
            devices.push(layer.identity().0);
        }
    }
    devices
}

/// Makes the cache of directory descriptors.
fn no_fds() -> Arc<DirFds> {
    Arc::new(DirFds::new(DIR_FDS.min(descriptor_budget())))
}

/// Describes the roots of the lowers, of which the first `names` give names; the topmost gets the number `top`. Those that an
/// opaque root hides are left out.
fn describe_roots(
    lowers: &mut [LowerLayer],
    names: usize,
    top: usize,
    namespace: Namespace,
) -> Result<(Roots, Roots)> {
    let mut roots = Vec::with_capacity(names);
    for (index, layer) in lowers.iter_mut().enumerate().take(names) {
        layer.look_for_upper_mark(namespace);
        let (root, opaque) = layer.root_dir(top + index, namespace)?;
        roots.push(root);
        if opaque {
            break;
        }
    }
    let data_layers = lowers.iter().enumerate().skip(names);
    Ok((roots, data_layers.map(|(index, layer)| layer.data_root(top + index)).collect()))
}

/// Returns how many descriptors one cache may hold: a sixth of what the process may open.
pub(crate) fn descriptor_budget() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    usize::try_from(limit.unwrap_or(u64::MAX) / 6).unwrap_or(usize::MAX)
}

fn open_upper(
    options: &MountOptions,
    lowers: &[LowerLayer],
    notices: &mut Vec<String>,
) -> Result<Option<UpperLayer>> {
    if options.is_read_only() {
        return Ok(None);
    }
    let (upper, work) = match (&options.upperdir, &options.workdir) {
        (None, _) => return Ok(None),
        (Some(upper), None) => {
            return Err(Error::new(Errno::INVAL)
                .during("use upper layer", upper.as_os_str().as_encoded_bytes())
                .hint("workdir not specified"));
        }
        (Some(upper), Some(work)) => (upper, work),
    };
    let (root, stat) = UpperLayer::open_root(upper)?;
    // A mount that was just taken away may still be finishing what was copied up.
    settle::wait_for_finisher(root.as_fd());
    let (mut workdir, notice) = Workdir::open(work)?;
    let in_use = notice.is_some();
    notices.extend(notice);
    upper::check_same_file_system(upper, root.as_fd(), workdir.base_fd())?;
    upper::check_inode_numbers(upper, root.as_fd())?;
    let mut features = probe::probe(&workdir, options)?;
    if let Some(sidecar) = choose_sidecar(&workdir, root.as_fd(), &mut features, options)? {
        workdir.attributes = Attributes::beside(sidecar);
    }
    notices.push(features.to_string());
    let owners = Owners::of_upper(root.as_fd(), options.xattr_permissions, lowers)?;
    if let Owners::Records(form) = owners {
        notices.push(format!("upper: owners and modes: {}", form.name().escape_ascii()));
    }
    let upper = UpperLayer::new(upper.clone(), root, stat, workdir, features, owners, options.upper_epoch)?;
    if options.fsync == FsyncPolicy::Volatile {
        upper.workdir.mark_volatile()?;
    }
    if !in_use {
        upper.finish_left_behind()?;
    }
    Ok(Some(upper))
}

/// Uses the catalogs beside the lower layers.
///
/// # Errors
/// With `catalog=require`: a layer without one that counts.
fn use_catalogs(lowers: &mut [LowerLayer], options: &MountOptions, notices: &mut Vec<String>) -> Result<()> {
    // timeout=0 says that layers change while they are mounted.
    let changing = options.timeout == 0.0 && options.catalog == CatalogPolicy::Auto;
    if options.catalog == CatalogPolicy::Off || changing {
        return Ok(());
    }
    let blocks = Arc::<Blocks>::default();
    let mut known = None;
    let mut viewer = || match known {
        Some(viewer) => Ok(viewer),
        None => Viewer::this_process().map(|viewer| *known.insert(viewer)),
    };
    let mut used = 0;
    // A read-only upper is the first of the layers and may change between mounts.
    let above = lowers.len() - options.lowerdir.len() - options.datadir.len();
    for (layer, path) in lowers.iter_mut().skip(above).zip(&options.lowerdir) {
        let usable = layer.use_catalog(&mut viewer, &blocks).unwrap_or_else(|error| {
            notices.push(format!("a catalog is not used: {error}"));
            Usable::No("it cannot be read")
        });
        match usable {
            Usable::Yes => used += 1,
            Usable::Missing | Usable::No(_) if options.catalog == CatalogPolicy::Require => {
                let why = if let Usable::No(why) = usable { why } else { "there is none" };
                return Err(Error::new(Errno::NOENT)
                    .during("use the catalog of lower layer", path.as_os_str().as_encoded_bytes())
                    .hint(why));
            }
            Usable::Missing => {}
            Usable::No(why) => notices.push(format!("the catalog of {} is not used: {why}", path.display())),
        }
    }
    if used > 0 {
        notices.push(format!("catalogs: {used} of {} lower layers", options.lowerdir.len()));
    }
    Ok(())
}

/// Checks that digests can be compared at all, if they shall be.
fn check_verity(options: &MountOptions, lowers: &[LowerLayer], notices: &mut Vec<String>) -> Result<()> {
    if options.verity == Verity::Off || lowers.iter().any(|layer| layer.has_verity) {
        return Ok(());
    }
    if options.verity == Verity::Require {
        return Err(Error::new(Errno::OPNOTSUPP).during("use option", "verity=require").hint(
            "no layer is on a file system with fs-verity, or this kernel has none (CONFIG_FS_VERITY)",
        ));
    }
    notices.push("verity=on: no layer has fs-verity; files that demand a digest cannot be read".to_owned());
    Ok(())
}

/// Has the upper of a read-only mount read with the sidecar that its workdir has.
fn read_sidecar(work: &Path, upper: &mut LowerLayer, userxattr: bool) -> Result<()> {
    let work = open_workdir(work)?;
    match Sidecar::open(work.as_fd(), probe::namespace_without_upper(userxattr), false)? {
        Some(sidecar) if sidecar.is_used()? => upper.read_beside(sidecar),
        _ => Ok(()),
    }
}

fn open_workdir(work: &Path) -> Result<OwnedFd> {
    open_dir(work).map_err(|e| Error::new(e).during("open workdir", work.as_os_str().as_encoded_bytes()))
}

/// Decides whether attributes are kept in the workdir: where the upper holds none, or where they are there already.
fn choose_sidecar(
    workdir: &Workdir,
    upper: BorrowedFd<'_>,
    features: &mut Features,
    options: &MountOptions,
) -> Result<Option<Sidecar>> {
    let used = workdir.attributes.sidecar().map_or(Ok(false), Sidecar::is_used)?;
    match options.sidecar {
        SidecarUse::On => {}
        SidecarUse::Auto if features.namespace.is_none() || used => {}
        SidecarUse::Auto => return Ok(None),
        SidecarUse::Off if used => {
            return Err(Error::new(Errno::INVAL)
                .during("leave alone in the workdir the directory", sidecar::SIDECAR)
                .hint("it holds the attributes of this upper; mount without sidecar=off"));
        }
        SidecarUse::Off => return Ok(None),
        SidecarUse::Store => {
            return Err(Error::new(Errno::INVAL)
                .during("use option", "sidecar=store")
                .hint("only the command unionfs serves stores, not the library"));
        }
    }
    let namespace = features.namespace.unwrap_or_else(|| probe::namespace_without_upper(options.userxattr));
    let sidecar = Sidecar::make(workdir.base_fd(), namespace, options.fsync.syncs())?;
    sidecar.claim(upper)?;
    (features.namespace, features.sidecar) = (Some(namespace), true);
    Ok(Some(sidecar))
}

/// Takes the directories that must not be shown out of the layers that contain them.
fn hide_paths(lowers: &mut [LowerLayer], hidden: &[PathBuf]) -> Result<()> {
    for path in hidden {
        let path = absolute(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let Ok(fd) = open_dir(parent) else { continue };
        let stat = sys::stat_fd(fd.as_fd())?;
        for layer in lowers.iter_mut() {
            layer.hide((stat.dev, stat.ino), name.as_encoded_bytes());
        }
    }
    Ok(())
}

fn open_dir(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    sys::retry(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))
}

fn absolute(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// Refuses layers that would change under the union's own feet: a lower inside the upper or workdir, upper and
/// workdir inside each other. Returns upper and workdir if they lie inside a lower: there they are not shown.
fn check_overlap(
    (upper, work): (PathBuf, PathBuf),
    lowers: &[LowerLayer],
    notices: &mut Vec<String>,
) -> Result<Vec<PathBuf>> {
    let bytes = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
    if upper.starts_with(&work) || work.starts_with(&upper) {
        return Err(Error::new(Errno::INVAL)
            .during("use workdir", bytes(&work))
            .hint("workdir and upperdir must be separate directories, neither inside the other"));
    }
    let mut inside = Vec::new();
    for lower in lowers.iter().map(|layer| &layer.real) {
        for writable in [&upper, &work] {
            if lower.starts_with(writable) {
                return Err(Error::new(Errno::LOOP)
                    .during("use lower layer", bytes(lower))
                    .hint("a lower layer must not lie inside upperdir or workdir"));
            }
            if writable.starts_with(lower) {
                notices
                    .push(format!("{} lies inside a lower layer and is not shown there", writable.display()));
                inside.push(writable.clone());
            }
        }
    }
    Ok(inside)
}

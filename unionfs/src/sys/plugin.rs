//! Plugins of fuse-overlayfs 1.x: shared objects that give layers.
//!
//! The binary interface is that of version 1 (`plugin.h` and `fuse-overlayfs.h` of fuse-overlayfs 1.10; what later ones append to
//! the table of functions is not asked for). Functions fail as system calls do, by -1 or a null pointer and `errno`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::mem::zeroed;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::Path;
use std::ptr::{null, null_mut};

use crate::error::Errno;

/// The one version there is.
const VERSION: c_int = 1;
/// Bytes of the longest value or list of names of extended attributes.
const XATTR_MAX: usize = 64 << 10;
/// Bytes of the longest target of a symbolic link.
const PATH_MAX: usize = 4096;
/// Words behind the workdir in what a layer shows of the mount: more than any version has.
const MOUNT_REST: usize = 128;

type Number = unsafe extern "C" fn() -> c_int;
type Name = unsafe extern "C" fn() -> *const c_char;
type Load = unsafe extern "C" fn(*const c_char, *const c_char) -> *const Table;

/// `struct data_source`, as far as it is used.
#[repr(C)]
struct Table {
    num_of_layers: Option<unsafe extern "C" fn(*const c_char, *const c_char) -> c_int>,
    load_data_source:
        Option<unsafe extern "C" fn(*mut RawLayer, *const c_char, *const c_char, c_int) -> c_int>,
    cleanup: Option<unsafe extern "C" fn(*mut RawLayer) -> c_int>,
    _file_exists: *const c_void,
    statat:
        Option<unsafe extern "C" fn(*mut RawLayer, *const c_char, *mut libc::stat, c_int, c_uint) -> c_int>,
    _fstat: *const c_void,
    opendir: Option<unsafe extern "C" fn(*mut RawLayer, *const c_char) -> *mut c_void>,
    readdir: Option<unsafe extern "C" fn(*mut c_void) -> *const libc::dirent64>,
    closedir: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    openat: Option<unsafe extern "C" fn(*mut RawLayer, *const c_char, c_int, libc::mode_t) -> c_int>,
    listxattr: Option<unsafe extern "C" fn(*mut RawLayer, *const c_char, *mut c_char, usize) -> c_int>,
    getxattr: Option<
        unsafe extern "C" fn(*mut RawLayer, *const c_char, *const c_char, *mut c_char, usize) -> c_int,
    >,
    readlinkat: Option<unsafe extern "C" fn(*mut RawLayer, *const c_char, *mut c_char, usize) -> isize>,
}

/// `struct ovl_layer`, with what later versions have at its end.
#[repr(C)]
struct RawLayer {
    next: *mut RawLayer,
    ds: *const Table,
    ovl_data: *mut RawMount,
    path: *mut c_char,
    fd: c_int,
    low: bool,
    data_source_private_data: *mut c_void,
    stat_override_mode: c_int,
    st_dev: libc::dev_t,
    nfs_filehandles: c_int,
    fh: *mut c_void,
}

/// `struct ovl_data`, of which all versions have the first ten fields in one order. What is not told is 0.
#[repr(C)]
struct RawMount {
    _before: [usize; 9],
    workdir: *const c_char,
    _rest: [u64; MOUNT_REST],
}

/// A plugin. Stays in the process: those written in Go cannot be unloaded.
pub(crate) struct Plugin {
    name: CString,
    load: Load,
    release: Number,
}

/// A layer of a plugin.
pub(crate) struct Layer {
    table: *const Table,
    raw: Box<RawLayer>,
    _mount: Box<RawMount>,
    _workdir: Option<CString>,
}

// SAFETY: what is pointed to is the layer's own or, as the table, never changes; nothing of it belongs to a thread.
unsafe impl Send for Layer {}

/// A name in a directory, with what the plugin tells of it: inode number and `DT_*`.
#[derive(Debug)]
pub(crate) struct Listed {
    pub name: Vec<u8>,
    pub ino: u64,
    pub kind: u8,
}

impl Plugin {
    /// Loads a plugin: its code runs in this process from here on.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let file = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| "a NUL in the path")?;
        // SAFETY: the path ends with a NUL. What the code does is for who asked for it to answer.
        let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(last_error());
        }
        let symbol = |name: &CStr| {
            // SAFETY: the library is loaded and stays, and the name ends with a NUL.
            let at = unsafe { libc::dlsym(handle, name.as_ptr()) };
            if at.is_null() { Err(format!("it has no {}", name.to_string_lossy())) } else { Ok(at) }
        };
        // SAFETY: the interface gives the symbol this type.
        let version = unsafe { std::mem::transmute::<*mut c_void, Number>(symbol(c"plugin_version")?)() };
        if version != VERSION {
            return Err(format!("it is of version {version}, and only version {VERSION} is known"));
        }
        // SAFETY: as above.
        let name = unsafe { std::mem::transmute::<*mut c_void, Name>(symbol(c"plugin_name")?)() };
        if name.is_null() {
            return Err("it has no name".to_owned());
        }
        // SAFETY: as above.
        let load = unsafe { std::mem::transmute::<*mut c_void, Load>(symbol(c"plugin_load")?) };
        // SAFETY: as above.
        let release = unsafe { std::mem::transmute::<*mut c_void, Number>(symbol(c"plugin_release")?) };
        // SAFETY: the plugin's name is a string that stays.
        Ok(Self { name: unsafe { CStr::from_ptr(name) }.to_owned(), load, release })
    }

    /// Returns the name by which layers ask for it.
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }

    /// Returns the layers that it has at `path`, topmost first; what `data` means is the plugin's. It may keep files of its own in
    /// the workdir.
    ///
    /// # Errors
    /// The plugin has refused them, in words.
    pub(crate) fn layers(
        &self,
        data: &CStr,
        path: &CStr,
        workdir: Option<&CStr>,
    ) -> Result<Vec<Layer>, String> {
        // SAFETY: the plugin takes two strings.
        let table = unsafe { (self.load)(data.as_ptr(), path.as_ptr()) };
        // SAFETY: a table that is not null is valid for as long as the plugin is loaded.
        let Some(Table { num_of_layers: Some(count), load_data_source: Some(load), .. }) =
            (unsafe { table.as_ref() })
        else {
            return Err("the plugin does not take it".to_owned());
        };
        // SAFETY: as above.
        let count = unsafe { count(data.as_ptr(), path.as_ptr()) };
        if count < 0 {
            return Err("the plugin does not tell how many layers it is".to_owned());
        }
        let layer = |number| {
            let mut layer = Layer::new(table, workdir);
            // SAFETY: the layer is what the interface says, and its own.
            match unsafe { load(&raw mut *layer.raw, data.as_ptr(), path.as_ptr(), number) } {
                0.. => Ok(layer),
                _ => Err(format!("the plugin cannot load its layer {number}")),
            }
        };
        (0..count).map(layer).collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // SAFETY: the library stays loaded, and none of its layers is left.
        unsafe { (self.release)() };
    }
}

/// Returns what dlopen(3) says.
fn last_error() -> String {
    // SAFETY: a string, or null, that is valid until the next call of this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "it cannot be loaded".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

impl Layer {
    fn new(table: *const Table, workdir: Option<&CStr>) -> Self {
        let workdir = workdir.map(CStr::to_owned);
        let mut mount = Box::new(RawMount {
            _before: [0; 9],
            workdir: workdir.as_ref().map_or(null(), |workdir| workdir.as_ptr()),
            _rest: [0; MOUNT_REST],
        });
        let raw = Box::new(RawLayer {
            next: null_mut(),
            ds: table,
            ovl_data: &raw mut *mount,
            path: null_mut(),
            fd: -1,
            low: true,
            data_source_private_data: null_mut(),
            stat_override_mode: 0,
            st_dev: 0,
            nfs_filehandles: 0,
            fh: null_mut(),
        });
        Self { table, raw, _mount: mount, _workdir: workdir }
    }

    fn table(&self) -> &Table {
        // SAFETY: a table is valid for as long as its plugin is loaded, which is for ever.
        unsafe { &*self.table }
    }

    /// Returns the attributes of what is at `path`, below the layer's root, a symbolic link not followed.
    pub(crate) fn stat(&mut self, path: &CStr) -> Result<libc::stat, Errno> {
        let stat = self.table().statat.ok_or(Errno::OPNOTSUPP)?;
        // SAFETY: plain numbers, of which 0 is a value.
        let mut found: libc::stat = unsafe { zeroed() };
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: the layer is one of this table's; the plugin writes one structure.
        called(|| unsafe {
            stat(&raw mut *self.raw, path.as_ptr(), &raw mut found, flags, libc::STATX_BASIC_STATS) as isize
        })?;
        Ok(found)
    }

    /// Returns what is in a directory, as the plugin lists it.
    pub(crate) fn list(&mut self, path: &CStr) -> Result<Vec<Listed>, Errno> {
        let (Some(open), Some(read), Some(close)) =
            (self.table().opendir, self.table().readdir, self.table().closedir)
        else {
            return Err(Errno::OPNOTSUPP);
        };
        clear();
        // SAFETY: the layer is one of this table's.
        let dir = unsafe { open(&raw mut *self.raw, path.as_ptr()) };
        if dir.is_null() {
            return Err(last());
        }
        let mut listed = Vec::new();
        let end = loop {
            clear();
            // SAFETY: the directory is open.
            let entry = unsafe { read(dir) };
            if entry.is_null() {
                break nix::errno::Errno::last_raw();
            }
            // SAFETY: an entry is valid until the next call, up to the NUL of its name: it may be shorter than its type says.
            let (ino, kind, name) = unsafe {
                ((*entry).d_ino, (*entry).d_type, CStr::from_ptr((&raw const (*entry).d_name).cast()))
            };
            listed.push(Listed { name: name.to_bytes().to_vec(), ino, kind });
        };
        // SAFETY: the directory is open, and not used any more.
        unsafe { close(dir) };
        if end == 0 { Ok(listed) } else { Err(Errno::from_raw_os_error(end)) }
    }

    /// Opens a regular file for reading.
    pub(crate) fn open(&mut self, path: &CStr) -> Result<OwnedFd, Errno> {
        let open = self.table().openat.ok_or(Errno::OPNOTSUPP)?;
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the layer is one of this table's.
        let fd = called(|| unsafe { open(&raw mut *self.raw, path.as_ptr(), flags, 0) as isize })?;
        let fd = c_int::try_from(fd).map_err(|_| Errno::BADF)?;
        // SAFETY: the plugin has opened it for its caller.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Returns the names of extended attributes, each ended by NUL.
    pub(crate) fn xattr_names(&mut self, path: &CStr) -> Result<Vec<u8>, Errno> {
        let list = self.table().listxattr.ok_or(Errno::OPNOTSUPP)?;
        let raw = &raw mut *self.raw;
        // SAFETY: the layer is one of this table's; the plugin writes no more than there is room for.
        filled(XATTR_MAX, |buffer, room| unsafe { list(raw, path.as_ptr(), buffer, room) as isize })
    }

    /// Returns the value of an extended attribute.
    pub(crate) fn xattr(&mut self, path: &CStr, name: &CStr) -> Result<Vec<u8>, Errno> {
        let get = self.table().getxattr.ok_or(Errno::OPNOTSUPP)?;
        let raw = &raw mut *self.raw;
        // SAFETY: as above.
        filled(XATTR_MAX, |buffer, room| unsafe {
            get(raw, path.as_ptr(), name.as_ptr(), buffer, room) as isize
        })
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn link_target(&mut self, path: &CStr) -> Result<Vec<u8>, Errno> {
        let read = self.table().readlinkat.ok_or(Errno::OPNOTSUPP)?;
        let raw = &raw mut *self.raw;
        // SAFETY: as above.
        filled(PATH_MAX, |buffer, room| unsafe { read(raw, path.as_ptr(), buffer, room) })
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        if let Some(cleanup) = self.table().cleanup {
            // SAFETY: the layer is one of this table's, and not used any more.
            unsafe { cleanup(&raw mut *self.raw) };
        }
    }
}

/// Returns the bytes that a function writes.
fn filled(room: usize, write: impl FnOnce(*mut c_char, usize) -> isize) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; room];
    let len = called(|| write(buffer.as_mut_ptr().cast(), room))?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Returns what a function returns, if that is no failure.
fn called(function: impl FnOnce() -> isize) -> Result<usize, Errno> {
    clear();
    usize::try_from(function()).map_err(|_| last())
}

fn clear() {
    nix::errno::Errno::clear();
}

/// Returns why the last function failed; EIO if it does not say.
fn last() -> Errno {
    match nix::errno::Errno::last_raw() {
        0 => Errno::IO,
        number => Errno::from_raw_os_error(number),
    }
}

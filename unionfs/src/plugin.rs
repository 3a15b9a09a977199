//! Layers by plugins of fuse-overlayfs 1.x: `lowerdir=//NAME/DATA/PATH`, `plugins=FILE:FILE`.
//!
//! [`beneath`] has a process beside this one load them and serve their layers over FUSE, read-only, and has the options name these
//! as directories: everything above finds layers as any others. No foreign code runs in this process, and one that crashes or
//! hangs there is a layer that does.

mod served;

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::alarm;
use rustix::pipe::PipeFlags;

use crate::error::{Errno, Error, Result};
use crate::fuse::beneath::{self, Beneath, mount_detached, open_dir};
use crate::fuse::daemon::{self, Told};
use crate::options::{MountOptions, PluginLayer};
use crate::sys::plugin::{Layer, Plugin};

/// What the mount of such layers is called among the mounts.
const MOUNT_TYPE: &str = "unionfs-plugin";
/// Seconds that a plugin may take over one answer: it may have to fetch a large file.
const PATIENCE: u32 = 600;
/// Where plugins are looked for if the options name none.
const DEFAULT: &str = "/usr/libexec/fuse-overlayfs";

/// Serves the layers by plugins that the options name, and has `options` name them as directories.
///
/// To be called while this process has one thread.
///
/// # Errors
/// EINVAL with what is wrong with a plugin, or what it says to a layer; what mounting and forking answer.
pub(crate) fn beneath(options: &mut MountOptions) -> Result<Option<Beneath>> {
    let wanted: Vec<PluginLayer> =
        options.lowerdir.iter().filter_map(|path| PluginLayer::named_by(path)).collect();
    if wanted.is_empty() {
        return Ok(None);
    }
    let (layers, device) = mount()?;
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(Error::from)?;
    let (files, workdir) = (options.plugins.clone(), options.workdir.clone());
    let here = open_dir(Path::new("."))?;
    daemon::beside(Told::under(options), move || {
        daemon::keep_only(&[device.as_fd(), writer.as_fd(), here.as_fd()]);
        // Paths may be relative, also those that only the plugin reads.
        rustix::process::fchdir(here)?;
        let loaded = limited(|| load(&files.unwrap_or_else(default_plugins), &wanted, workdir.as_deref()));
        rustix::process::chdir("/")?;
        serve(loaded, device, File::from(writer))
    })?;
    name_directories(options, &layers, read_answer(File::from(reader))?);
    Ok(Some(layers))
}

/// Has the options name each layer by a plugin as the directories that it is, `counts` of them.
fn name_directories(options: &mut MountOptions, layers: &Beneath, counts: Vec<usize>) {
    let (mut counts, mut number) = (counts.into_iter(), 0);
    let mut lowerdir = Vec::new();
    for path in std::mem::take(&mut options.lowerdir) {
        if PluginLayer::named_by(&path).is_none() {
            lowerdir.push(path);
            continue;
        }
        let next = number + counts.next().unwrap_or(0);
        lowerdir.extend((number..next).map(|number| layers.path(&number.to_string())));
        number = next;
    }
    options.lowerdir = lowerdir;
}

/// Makes the mount, on a directory that is there for a moment only.
fn mount() -> Result<(Beneath, OwnedFd)> {
    let template = std::env::temp_dir().join("unionfs-XXXXXX");
    let place = nix::unistd::mkdtemp(&template).map_err(|errno| {
        Error::from(std::io::Error::from(errno)).during("make", template.as_os_str().as_bytes())
    })?;
    let mounted = mount_detached(&place, MOUNT_TYPE, true);
    match std::fs::remove_dir(&place) {
        Ok(()) => mounted,
        Err(error) => mounted.and(Err(Error::from(error).during("remove", place.as_os_str().as_bytes()))),
    }
}

/// Plugins, and the layers that each wanted one is; these end before what they are of.
struct Loaded {
    layers: Vec<Vec<Layer>>,
    plugins: Vec<Plugin>,
}

/// Tells how many layers each wanted one is, or what is wrong, and serves them all.
fn serve(loaded: std::result::Result<Loaded, String>, device: OwnedFd, mut answer: File) -> Result<()> {
    let text = match &loaded {
        Ok(Loaded { layers, .. }) => layers.iter().map(|layers| format!("{} ", layers.len())).collect(),
        Err(text) => format!("!{text}"),
    };
    answer.write_all(text.as_bytes())?;
    drop(answer);
    match loaded {
        Ok(Loaded { layers, plugins }) => {
            let served = beneath::serve(served::Server::new(layers.into_iter().flatten().collect()), device);
            drop(plugins);
            served
        }
        Err(_) => Ok(()),
    }
}

/// Has a plugin work. If that lasts too long the process is killed: whoever waits for its answer, the union's server among them, could
/// end no other way.
fn limited<T>(work: impl FnOnce() -> T) -> T {
    alarm::set(PATIENCE);
    let done = work();
    alarm::cancel();
    done
}

/// Returns how many layers each wanted one is.
fn read_answer(mut answer: File) -> Result<Vec<usize>> {
    let mut text = String::new();
    let read = answer.read_to_string(&mut text);
    let fault = |text: &str| Err(Error::new(Errno::INVAL).during("use", text.as_bytes()));
    match (read, text.strip_prefix('!')) {
        (Err(error), _) => Err(error.into()),
        (Ok(_), Some(told)) => fault(told),
        // It always says something.
        (Ok(0), None) => fault("plugins: the process that loads them was killed by one"),
        (Ok(_), None) => Ok(text.split_ascii_whitespace().filter_map(|count| count.parse().ok()).collect()),
    }
}

/// Loads the layers of each wanted one, or tells what is wrong.
fn load(
    files: &[PathBuf],
    wanted: &[PluginLayer],
    workdir: Option<&Path>,
) -> std::result::Result<Loaded, String> {
    let mut plugins: Vec<Plugin> = Vec::new();
    for file in files {
        let plugin = Plugin::open(file).map_err(|text| format!("plugin {}: {text}", file.display()))?;
        if plugins.iter().any(|other| other.name() == plugin.name()) {
            return Err(format!("plugin {}: there is one of its name already", file.display()));
        }
        plugins.push(plugin);
    }
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| "a NUL in the name of a layer".to_owned());
    let workdir = workdir.map(|path| text(path.as_os_str().as_bytes())).transpose()?;
    let mut layers = Vec::new();
    for layer in wanted {
        let shown = layer.path.escape_ascii();
        let plugin = plugins
            .iter()
            .find(|plugin| plugin.name().to_bytes() == layer.name)
            .ok_or_else(|| format!("plugin {}: there is none of that name", layer.name.escape_ascii()))?;
        let of_it = plugin
            .layers(&text(&layer.data)?, &text(&layer.path)?, workdir.as_deref())
            .map_err(|text| format!("layer {shown} of plugin {}: {text}", layer.name.escape_ascii()))?;
        layers.push(of_it);
    }
    Ok(Loaded { layers, plugins })
}

/// Returns what is in the directory of fuse-overlayfs' plugins.
fn default_plugins() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(Path::new(DEFAULT)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

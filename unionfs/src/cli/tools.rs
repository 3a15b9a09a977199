//! The commands that mount nothing: what was typed, and what is printed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Failure, NAME, complain, prepare_process, print, warn_about};
use crate::fuse::control;
use crate::options::MountOptions;
use crate::tools::apply::{ApplyOptions, Devices, Format, Owners};
use crate::tools::check::{self, Faults};
use crate::tools::{apply, diff, merge};

const DIFF_USAGE: &str = "\
usage: unionfs diff -o lowerdir=A:B,upperdir=U[,workdir=W] [--format list|tar] [-O FILE]

Tells what the upper U changed: A added, C changed, D deleted; or writes it as an OCI layer, a tar archive.
With the workdir, hard links that its index keeps together are found. Nothing is changed; the union may be mounted.

  -o OPTION[,OPTION...]  options of the mount
  --format list|tar      what to write (default: list)
  -O, --output FILE      write to FILE instead of standard output
";

const APPLY_USAGE: &str = "\
usage: unionfs apply [-o OPTION[,OPTION...]] LAYER DIRECTORY

Unpacks an OCI layer, a tar archive (also in gzip or zstd), into a directory. LAYER - is standard input.

  -o format=overlayfs    whiteouts are devices 0:0, opaque is trusted.overlay.opaque (default for root)
  -o format=userxattr    whiteouts are devices 0:0, opaque is user.overlay.opaque (default for others)
  -o format=oci          whiteouts are files .wh.NAME
  -o format=plain        whiteouts remove what they name from DIRECTORY
  -o owners=keep|own     owners as told (default for root), or this user (default for others)
  -o devices=skip        leave out devices that this process may not make
";

const CHECK_USAGE: &str = "\
usage: unionfs check -o upperdir=U,workdir=W[,lowerdir=A:B] [--repair]

Tells what is wrong in an upper and its workdir that no mount uses, a line each, and with --repair repairs it.
With the lowers, what leads to them is checked too. Exit status: 0 clean, 1 all repaired, 4 something is left,
8 the check itself failed.

  -o OPTION[,OPTION...]  options of the mount
  --repair               repair what can be
";

const MERGE_USAGE: &str = "\
usage: unionfs merge -o lowerdir=A:B[,upperdir=U,workdir=W] [--onto C:D] --into NEW
       unionfs merge -o lowerdir=A:B[,upperdir=U,workdir=W] [--onto C:D] --replace B

Writes what the union of the layers shows into the new directory NEW, or puts it in the place of one of the layers. To be
used above other layers, name those with --onto: it then holds what differs from them, with whiteouts. The upper must
not be mounted. With --into the layers stay as they are.

  -o OPTION[,OPTION...]  options of the mount
  --onto C[:D...]        layers below the result, topmost first
  --into NEW             the directory to make; it appears when it is complete
  --replace B            the layer to replace, in one step; what it was stays as B.old, and the upper is emptied. Prints the
                         options to mount with from then on. If it is interrupted, give the same command again
";

/// What was typed after the name of a command.
#[derive(Debug, Default)]
struct Typed {
    options: Vec<OsString>,
    words: Vec<OsString>,
    format: Option<OsString>,
    output: Option<OsString>,
    onto: Option<OsString>,
    into: Option<OsString>,
    replace: Option<OsString>,
    repair: bool,
    help: bool,
}

impl Typed {
    fn read(arguments: &[OsString]) -> Result<Self, Failure> {
        let mut typed = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let bytes = argument.as_bytes();
            let (flag, sticking) = split_flag(bytes);
            let mut value = || -> Result<OsString, Failure> {
                let sticking = sticking.map(|value| OsString::from_vec(value.to_vec()));
                let value = sticking.or_else(|| rest.next().cloned());
                Ok(value.ok_or_else(|| format!("{} needs a value", flag.escape_ascii()))?)
            };
            match flag {
                b"-o" => typed.options.push(value()?),
                b"--format" => typed.format = Some(value()?),
                b"-O" | b"--output" => typed.output = Some(value()?),
                b"--onto" => typed.onto = Some(value()?),
                b"--into" => typed.into = Some(value()?),
                b"--replace" => typed.replace = Some(value()?),
                b"--repair" => typed.repair = true,
                b"-h" | b"--help" => typed.help = true,
                b"--" => typed.words.extend(rest.by_ref().cloned()),
                _ if bytes.len() > 1 && bytes.starts_with(b"-") => return Err(super::unknown(bytes)),
                _ => typed.words.push(argument.clone()),
            }
        }
        Ok(typed)
    }

    /// Reads the options of the mount that is meant, and prepares the process.
    fn mount_options(&self) -> Result<MountOptions, Failure> {
        let (mut options, warnings) = MountOptions::parse(&self.options)?;
        warn_about(&warnings);
        options.flags.read_only = false;
        if let Some(word) = self.words.first() {
            return Err(format!("unexpected word {}", word.as_bytes().escape_ascii()).into());
        }
        Ok(options)
    }
}

/// Splits `-oVALUE` and `--flag=VALUE`.
fn split_flag(argument: &[u8]) -> (&[u8], Option<&[u8]>) {
    if argument.starts_with(b"--") {
        let equals = argument.iter().position(|&byte| byte == b'=');
        return match equals {
            Some(at) => (argument.get(..at).unwrap_or_default(), argument.get(at + 1..)),
            None => (argument, None),
        };
    }
    match argument.split_at_checked(2) {
        Some((flag @ (b"-o" | b"-O"), value)) if !value.is_empty() => (flag, Some(value)),
        _ => (argument, None),
    }
}

/// Refuses a command without an option that it cannot do without.
fn need(option: &str, given: bool) -> Result<(), Failure> {
    if given { Ok(()) } else { Err(format!("option \"{option}\": {option} not specified").into()) }
}

fn prepare() {
    prepare_process();
    super::log::start(false);
}

/// `unionfs diff`.
pub(super) fn diff(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let typed = Typed::read(arguments)?;
    if typed.help {
        return print(DIFF_USAGE.as_bytes());
    }
    let mut options = typed.mount_options()?;
    need("upperdir", options.upperdir.is_some())?;
    need("lowerdir", !options.lowerdir.is_empty())?;
    prepare();
    let _beneath = super::beneath(&mut options)?;
    let format = typed.format.as_deref().unwrap_or(OsStr::new("list"));
    match format.as_bytes() {
        b"list" => {
            let changes = diff::changes(&options)?;
            write_to(typed.output.as_deref(), |out| {
                for change in &changes {
                    out.write_all(&[change.kind.letter(), b' '])?;
                    out.write_all(&change.path)?;
                    out.write_all(b"\n")?;
                }
                Ok(())
            })?;
        }
        b"tar" => write_to(typed.output.as_deref(), |out| {
            for note in diff::write_layer(&options, out)? {
                complain(&note);
            }
            Ok(())
        })?,
        other => return Err(format!("unknown format {}: list or tar", other.escape_ascii()).into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes to a file, which appears whole or not at all, or to standard output.
fn write_to(
    path: Option<&OsStr>,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let Some(path) = path else {
        let mut out = BufWriter::with_capacity(1 << 17, io::stdout().lock());
        write(&mut out)?;
        return Ok(out.flush()?);
    };
    let mut partial = path.to_owned();
    partial.push(".partial");
    let cannot = |error: io::Error| -> Failure {
        format!("cannot write \"{}\": {error}", path.as_bytes().escape_ascii()).into()
    };
    let file = File::create(&partial).map_err(cannot)?;
    let mut out = BufWriter::with_capacity(1 << 17, file);
    let written = write(&mut out).and_then(|()| out.flush().map_err(cannot));
    match written.and_then(|()| std::fs::rename(&partial, path).map_err(cannot)) {
        Ok(()) => Ok(()),
        Err(error) => {
            std::fs::remove_file(&partial).map_err(cannot)?;
            Err(error)
        }
    }
}

/// `unionfs apply`.
pub(super) fn apply(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let typed = Typed::read(arguments)?;
    if typed.help {
        return print(APPLY_USAGE.as_bytes());
    }
    let options = apply_options(&typed.options)?;
    let [layer, dir] = typed.words.as_slice() else {
        return Err(format!("a layer and a directory are needed (see {NAME} apply --help)").into());
    };
    prepare();
    let input: Box<dyn Read> = if layer == "-" {
        Box::new(io::stdin().lock())
    } else {
        let shown = layer.as_bytes().escape_ascii();
        Box::new(
            File::open(PathBuf::from(layer)).map_err(|error| format!("cannot open \"{shown}\": {error}"))?,
        )
    };
    for note in apply::apply(input, Path::new(dir), &options)? {
        complain(&note);
    }
    Ok(ExitCode::SUCCESS)
}

fn apply_options(typed: &[OsString]) -> Result<ApplyOptions, Failure> {
    let mut options = ApplyOptions::default();
    let words = typed.iter().flat_map(|list| list.as_bytes().split(|&byte| byte == b','));
    for word in words.filter(|word| !word.is_empty()) {
        let unknown = || format!("option \"{}\": not known to {NAME} apply", word.escape_ascii());
        match word {
            b"owners=keep" => options.owners = Owners::Keep,
            b"owners=own" => options.owners = Owners::Own,
            b"devices=skip" => options.devices = Devices::Skipped,
            _ => {
                let format = word.strip_prefix(b"format=").and_then(Format::named);
                options.format = format.ok_or_else(unknown)?;
            }
        }
    }
    Ok(options)
}

/// `unionfs check`.
pub(super) fn check(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    /// The exit status of fsck(8) for a check that could not be made.
    const FAILED: u8 = 8;
    let checked = || -> Result<ExitCode, Failure> {
        let typed = Typed::read(arguments)?;
        if typed.help {
            return print(CHECK_USAGE.as_bytes());
        }
        let mut options = typed.mount_options()?;
        need("upperdir", options.upperdir.is_some())?;
        need("workdir", options.workdir.is_some())?;
        prepare();
        let _beneath = super::beneath(&mut options)?;
        let findings = check::check(&options, if typed.repair { Faults::Repaired } else { Faults::Told })?;
        let mut lines = String::new();
        for finding in &findings {
            lines.push_str(&finding.to_string().replace('\n', ", "));
            lines.push('\n');
        }
        print(lines.as_bytes())?;
        Ok(ExitCode::from(check::status(&findings)))
    };
    checked().or_else(|error| {
        complain(&error);
        Ok(ExitCode::from(FAILED))
    })
}

/// Refuses to replace a layer of a live mount, and to merge what is the upper of one.
fn refuse_live(options: &MountOptions, layer: &Path) -> Result<(), Failure> {
    let runtime = super::runtime_directory();
    let identity = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    for merged in &options.lowerdir {
        let role = control::role_of(merged, runtime.as_deref())?;
        if role == Some("upper") || (role.is_some() && identity(merged) == identity(layer)) {
            let shown = merged.as_os_str().as_bytes().escape_ascii();
            return Err(format!("a mount has \"{shown}\" as a layer: unmount it first").into());
        }
    }
    Ok(())
}

/// `unionfs merge`.
pub(super) fn merge(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let typed = Typed::read(arguments)?;
    if typed.help {
        return print(MERGE_USAGE.as_bytes());
    }
    let mut options = typed.mount_options()?;
    need("lowerdir", !options.lowerdir.is_empty())?;
    if typed.into.is_some() == typed.replace.is_some() {
        return Err(format!("--into is needed, or --replace (see {NAME} merge --help)").into());
    }
    // The same text as that of lowerdir, with the same escapes.
    let below = match typed.onto {
        Some(list) => {
            let mut text = OsString::from("lowerdir=");
            text.push(list);
            MountOptions::parse(&[text])?.0.lowerdir
        }
        None => Vec::new(),
    };
    prepare();
    let beneath = super::beneath(&mut options)?;
    if beneath.iter().any(Option::is_some) && typed.replace.is_some() {
        return Err(
            "--replace: a store or a layer by a plugin is among the layers, which only --into can read"
                .into(),
        );
    }
    let (notes, said) = match (typed.into, typed.replace) {
        (Some(into), _) => (merge::merge(&options, &below, Path::new(&into))?, String::new()),
        (None, layer) => {
            let layer = PathBuf::from(layer.unwrap_or_default());
            refuse_live(&options, &layer)?;
            let merge::Replaced { notes, old, options, finished_earlier } =
                merge::replace(&options, &below, &layer)?;
            if finished_earlier {
                complain(&"an earlier merge was interrupted after its step and is now finished");
            }
            complain(&format!("the layer before is \"{}\"", old.as_os_str().as_bytes().escape_ascii()));
            (notes, format!("{options}\n"))
        }
    };
    notes.iter().for_each(|note| complain(note));
    print(said.as_bytes())
}

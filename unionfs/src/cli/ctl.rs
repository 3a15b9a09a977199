//! The command `unionfs ctl`: commands to a live mount.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Failure, NAME, print, runtime_directory, unknown};
use crate::fuse::control;

const USAGE: &str = "\
usage: unionfs ctl MOUNT COMMAND

Asks the server of a live mount. MOUNT is any path on it.

  stats [--json]              requests by kind, failures, times of answers, copied-up files, nodes, open files
  layers                      the layers, topmost first, what their file systems can do, transport and data mode
  flush                       return when everything that was changed is on the disk
  reload                      forget what is remembered of the layers: one was changed by others
  rotate --upper U --work W   make the upper a read-only layer and the empty directory U, with its workdir W, the upper,
                              while programs go on; prints the layers to mount next time

The mount must be of the user who asks, or the user be root.
";

/// Runs the command with what follows its name.
pub(super) fn run(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    if arguments.iter().any(|argument| argument == "-h" || argument == "--help") {
        return print(USAGE.as_bytes());
    }
    let [mount, command, rest @ ..] = arguments else {
        return Err(format!("ctl needs a mount and a command (see {NAME} ctl --help)").into());
    };
    let words = match command.as_bytes() {
        b"stats" | b"layers" | b"flush" | b"reload" => {
            let json = command == "stats" && rest.iter().all(|word| word == "--json");
            if let Some(word) = rest.first().filter(|_| !json) {
                return Err(unknown(word.as_bytes()));
            }
            let words = [command].into_iter().chain(rest.first());
            words.map(|word| word.as_bytes().to_vec()).collect()
        }
        b"rotate" => rotate_words(rest)?,
        other => {
            return Err(
                format!("unknown command ctl {} (see {NAME} ctl --help)", other.escape_ascii()).into()
            );
        }
    };
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    match control::ask(Path::new(mount), &words, runtime_directory().as_deref())? {
        Ok(text) => print(&text),
        Err(text) => {
            let line = [b"unionfs: ", text.replace_line_ends().as_slice(), b"\n"].concat();
            std::io::stderr().write_all(&line)?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What several lines become when they are told in one.
trait OneLine {
    fn replace_line_ends(&self) -> Vec<u8>;
}

impl OneLine for Vec<u8> {
    fn replace_line_ends(&self) -> Vec<u8> {
        self.split(|byte| *byte == b'\n').collect::<Vec<_>>().join(&b", "[..])
    }
}

/// Returns the words of a rotation, with absolute paths: the server is in another directory.
fn rotate_words(arguments: &[OsString]) -> Result<Vec<Vec<u8>>, Failure> {
    let [mut upper, mut work] = [None, None];
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let (flag, value) = match argument.as_bytes().iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (flag, value) = argument.as_bytes().split_at(at);
                (flag, value.get(1..).map(|value| OsStr::from_bytes(value).to_owned()))
            }
            None => (argument.as_bytes(), rest.next().cloned()),
        };
        let place = match flag {
            b"--upper" => &mut upper,
            b"--work" => &mut work,
            _ => return Err(unknown(argument.as_bytes())),
        };
        *place = Some(value.ok_or_else(|| format!("{} needs a directory", flag.escape_ascii()))?);
    }
    let (Some(upper), Some(work)) = (upper, work) else {
        return Err(format!("rotate needs --upper and --work (see {NAME} ctl --help)").into());
    };
    let absolute = |path: OsString| -> Result<Vec<u8>, Failure> {
        let shown = path.as_bytes().escape_ascii().to_string();
        let path =
            std::fs::canonicalize(PathBuf::from(path)).map_err(|error| format!("\"{shown}\": {error}"))?;
        Ok(path.as_os_str().as_bytes().to_vec())
    };
    Ok(vec![b"rotate".to_vec(), absolute(upper)?, absolute(work)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn both_directories_of_a_rotation_are_needed_and_become_absolute() {
        let got = rotate_words(&words("--upper / --work=/proc/..")).unwrap();
        assert_eq!(got, [&b"rotate"[..], b"/", b"/"]);
        for (line, want) in [
            ("--upper /", "rotate needs --upper and --work"),
            ("--upper", "--upper needs a directory"),
            ("--uper /", "unknown flag --uper"),
            ("--upper /none --work /", "\"/none\": No such file"),
        ] {
            let error = rotate_words(&words(line)).unwrap_err().to_string();
            assert!(error.starts_with(want), "{line}: {error}");
        }
    }

    #[test]
    fn mistakes_are_told_before_anybody_is_asked() {
        for (line, want) in [
            ("/m", "ctl needs a mount and a command"),
            ("/m dance", "unknown command ctl dance"),
            ("/m flush --now", "unknown flag --now"),
            ("/m stats --xml", "unknown flag --xml"),
        ] {
            let error = run(&words(line)).unwrap_err().to_string();
            assert!(error.starts_with(want), "{line}: {error}");
        }
    }
}

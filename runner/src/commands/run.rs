//! `runner run`: flags -> container -> exit code.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::capabilities;
use crate::cli::{LimitsArg, NetworkArg, RunArgs};
use crate::container::{self, Request};
use crate::error::{During, Error, Result, shown};
use crate::spec::{self, Bind, ContainerSpec, Limits, Network, UserSpec};
use crate::state::{self, SHORT_ID, Store};

/// Runs a container; `variable` looks into the caller's environment.
pub fn main(store: &Path, args: &RunArgs, variable: &dyn Fn(&OsStr) -> Option<OsString>) -> Result<u8> {
    let id = state::new_id()?;
    let short = id.get(..SHORT_ID).unwrap_or(&id).to_owned();
    let name = args.name.as_deref().map_or_else(|| Ok(short.clone()), spec::parse_name)?;
    let spec = spec_of(args, &short, variable)?;
    let capabilities = capabilities::plan(&args.cap_add, &args.cap_drop)?;
    let store = Store::open(store)?;
    if spec.terminal && !rustix::termios::isatty(rustix::stdio::stdin()) && spec.interactive {
        super::warn("stdin is no terminal: what it gives is typed into the container's");
    }
    container::run(&store, Request { spec, id, name, capabilities }, &mut super::warn)
}

fn spec_of(
    args: &RunArgs,
    short: &str,
    variable: &dyn Fn(&OsStr) -> Option<OsString>,
) -> Result<ContainerSpec> {
    let hostname = args.hostname.as_deref().map_or_else(|| Ok(short.to_owned()), spec::parse_hostname)?;
    let cwd = args.workdir.clone().unwrap_or_else(|| PathBuf::from("/"));
    if !cwd.is_absolute() {
        return Err(Error::usage(format!("--workdir {} is not absolute", shown(&cwd))));
    }
    Ok(ContainerSpec {
        rootfs: spec::parse_rootfs(&args.rootfs)?
            .iter()
            .map(|layer| layer_of(layer))
            .collect::<Result<_>>()?,
        command: args.command.clone(),
        env: spec::environment(&hostname, args.tty, &variables(&args.env, variable)?),
        cwd,
        user: args.user.as_deref().map_or_else(|| Ok(UserSpec::default()), spec::parse_user)?,
        hostname,
        binds: args.volume.iter().map(|text| bind_of(text)).collect::<Result<_>>()?,
        tmpfs: args.tmpfs.iter().map(|text| spec::parse_tmpfs(text)).collect::<Result<_>>()?,
        read_only: args.read_only,
        interactive: args.interactive,
        terminal: args.tty,
        network: match args.network {
            NetworkArg::None => Network::None,
            NetworkArg::Host => Network::Host,
        },
        seccomp: seccomp_of(&args.security_opt)?,
        limits: limits_of(args)?,
        remove: args.rm,
    })
}

fn layer_of(layer: &Path) -> Result<PathBuf> {
    let path = layer.canonicalize().during(format_args!("use {} as --rootfs", shown(layer)))?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(Error::usage(format!("--rootfs {} is not a directory", shown(layer))))
    }
}

fn bind_of(text: &OsStr) -> Result<Bind> {
    let bind = spec::parse_bind(text)?;
    let source =
        bind.source.canonicalize().during(format_args!("use {} as --volume", shown(&bind.source)))?;
    Ok(Bind { source, ..bind })
}

/// `NAME` alone takes the caller's value, or nothing when the caller has none.
fn variables(env: &[OsString], variable: &dyn Fn(&OsStr) -> Option<OsString>) -> Result<Vec<OsString>> {
    let mut entries = Vec::new();
    for entry in env {
        if spec::name_of(entry).is_empty() {
            return Err(Error::usage(format!("--env {} has no name", shown(entry))));
        }
        if entry.as_bytes().contains(&b'=') {
            entries.push(entry.clone());
        } else if let Some(value) = variable(entry) {
            let mut entry = entry.clone();
            entry.push("=");
            entry.push(value);
            entries.push(entry);
        }
    }
    Ok(entries)
}

fn seccomp_of(options: &[String]) -> Result<bool> {
    let mut seccomp = true;
    for option in options {
        match option.as_str() {
            "seccomp=unconfined" => seccomp = false,
            // Always on; accepted because scripts ask for it.
            "no-new-privileges" | "no-new-privileges=true" | "no-new-privileges:true" => {}
            _ => {
                return Err(Error::usage(format!("--security-opt \"{}\" is unknown", option.escape_debug()))
                    .hint("known: seccomp=unconfined, no-new-privileges"));
            }
        }
    }
    Ok(seccomp)
}

fn limits_of(args: &RunArgs) -> Result<Limits> {
    Ok(Limits {
        memory: args.memory.as_deref().map(spec::parse_memory).transpose()?,
        cpu_milli: args.cpus.as_deref().map(spec::parse_cpus).transpose()?,
        cpu_shares: args.cpu_shares.filter(|shares| *shares != 0),
        pids: args.pids_limit.as_deref().map(spec::parse_pids).transpose()?.flatten(),
        best_effort: args.limits == LimitsArg::BestEffort,
    })
}

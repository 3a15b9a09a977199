//! The command line: what was typed. Nothing below reads arguments or the environment.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;
use crate::error::{Class, Error};

/// Run commands in containers, without privilege. Changes go to a private layer; the host stays as it is.
#[derive(Debug, Parser)]
#[command(name = "runner", version, max_term_width = 100)]
struct Cli {
    /// Where containers are kept [root: /var/lib/runner, others: ~/.local/share/runner]
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a new container
    Run(Box<RunArgs>),
    /// List containers
    Ps(PsArgs),
    /// Remove containers with their changes
    Rm(RmArgs),
    /// Show what a container added (A), changed (C) and deleted (D)
    Diff(DiffArgs),
}

/// What `runner run` was given.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The root: a directory, or layers as TOP:...:BASE; `/` is this system itself
    #[arg(long, value_name = "DIR[:DIR...]", required = true)]
    pub rootfs: OsString,
    /// Name of the container
    #[arg(long)]
    pub name: Option<String>,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Keep stdin open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Host name [the short id]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Set a variable; NAME alone copies the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// Start in this directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// Run as this user, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<OsString>,
    /// Show a directory or file of the host
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    pub volume: Vec<OsString>,
    /// Mount an empty file system in memory
    #[arg(long, value_name = "DIR[:size=N,mode=M]")]
    pub tmpfs: Vec<OsString>,
    /// Make the root read-only
    #[arg(long)]
    pub read_only: bool,
    /// Network: none has the loopback interface only
    #[arg(long, visible_alias = "net", value_enum, default_value = "none")]
    pub network: NetworkArg,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_drop: Vec<String>,
    /// seccomp=unconfined switches the filter of system calls off
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// Limit memory, for example 64m
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Limit processor time, for example 0.5
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// Relative processor weight, 1024 being usual
    #[arg(short, long, value_name = "N")]
    pub cpu_shares: Option<u64>,
    /// Limit the number of processes
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<String>,
    /// What to do about a limit that this host cannot enforce
    #[arg(long, value_enum, default_value = "strict")]
    pub limits: LimitsArg,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Which network the container sees.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum NetworkArg {
    /// A network of its own with the loopback interface only.
    None,
    /// The network of the host.
    Host,
}

/// What becomes of limits that cannot be enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LimitsArg {
    /// An error.
    Strict,
    /// A warning.
    BestEffort,
}

/// What `runner ps` was given.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Show ended containers too
    #[arg(short, long)]
    pub all: bool,
    /// Show ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Show whole ids and commands
    #[arg(long)]
    pub no_trunc: bool,
}

/// What `runner rm` was given.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill running containers
    #[arg(short, long)]
    pub force: bool,
    /// Names or ids
    #[arg(required = true)]
    pub containers: Vec<String>,
}

/// What `runner diff` was given.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Name or id
    pub container: String,
}

/// Runs the program on its own arguments and environment.
pub fn main() -> ExitCode {
    start_log();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let is_run = matches!(cli.command, Command::Run(_));
    let store = cli.store.map_or_else(default_store, Ok);
    let outcome = store.and_then(|store| match cli.command {
        Command::Run(args) => commands::run::main(&store, &args, &|name| std::env::var_os(name)),
        Command::Ps(args) => commands::ps::main(&store, &args),
        Command::Rm(args) => commands::rm::main(&store, &args),
        Command::Diff(args) => commands::diff::main(&store, &args),
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            commands::complain(&error);
            ExitCode::from(if is_run || error.class() == Class::Usage { error.run_exit_code() } else { 1 })
        }
    }
}

/// Exit code for a command line that makes no sense, as docker has it.
const USAGE_EXIT_CODE: u8 = 125;

fn refuse(error: &clap::Error) -> ExitCode {
    crate::error::best_effort(error.print(), "nobody reads stderr");
    if error.use_stderr() { ExitCode::from(USAGE_EXIT_CODE) } else { ExitCode::SUCCESS }
}

/// Logs to stderr what `RUNNER_LOG` asks for; without it, errors of the file server only.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("RUNNER_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    crate::error::best_effort(
        subscriber.try_init().map_err(|error| error.to_string()),
        "a test has set one already",
    );
}

fn default_store() -> Result<PathBuf, Error> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/runner"));
    }
    let absolute = |name: &str| {
        std::env::var_os(name).filter(|value| value.as_bytes().starts_with(b"/")).map(PathBuf::from)
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("runner"))
        .ok_or_else(|| {
            Error::usage("neither XDG_DATA_HOME nor HOME is set").hint("choose a place with --store DIR")
        })
}

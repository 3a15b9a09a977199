//! `runner ps`: the containers of the store, newest first.

use std::io::Write;
use std::path::Path;

use crate::cli::PsArgs;
use crate::container;
use crate::error::{During, Result};
use crate::state::{self, Record, SHORT_ID, Status, Store, Text};

/// Longest command shown without `--no-trunc`.
const COMMAND_WIDTH: usize = 30;

/// Lists containers.
pub fn main(store: &Path, args: &PsArgs) -> Result<u8> {
    let store = Store::open(store)?;
    container::prune(&store)?;
    let mut rows = Vec::new();
    for place in store.list()? {
        match place.load() {
            Ok(record) => {
                let status = place.status(&record);
                rows.push((record, status));
            }
            // One that is just being made or removed has no record; a broken one is named.
            Err(error) if place.path().join("state.json").exists() => super::warn(error.text()),
            Err(_) => {}
        }
    }
    rows.retain(|(_, status)| args.all || *status == Status::Running);
    rows.sort_by_key(|(record, _)| std::cmp::Reverse(record.created));
    print(&rows, args).during("write the list")?;
    Ok(0)
}

fn print(rows: &[(Record, Status)], args: &PsArgs) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if !args.quiet {
        writeln!(
            out,
            "{:<12}  {:<16}  {:<COMMAND_WIDTH$}  {:<14}  {:<16}  NAME",
            "ID", "ROOTFS", "COMMAND", "CREATED", "STATUS"
        )?;
    }
    for (record, status) in rows {
        let id =
            if args.no_trunc { record.id.as_str() } else { record.id.get(..SHORT_ID).unwrap_or(&record.id) };
        if args.quiet {
            writeln!(out, "{id}")?;
            continue;
        }
        let width = if args.no_trunc { usize::MAX } else { COMMAND_WIDTH };
        let rootfs = cut(&join(&record.rootfs, ":"), if args.no_trunc { usize::MAX } else { 16 });
        let command = cut(&join(&record.command, " "), width);
        let created = ago(record.created);
        let status = show(*status);
        writeln!(
            out,
            "{id:<12}  {rootfs:<16}  {command:<COMMAND_WIDTH$}  {created:<14}  {status:<16}  {}",
            record.name
        )?;
    }
    Ok(())
}

fn join(parts: &[Text], separator: &str) -> String {
    let parts: Vec<String> = parts.iter().map(|part| part.to_string().escape_debug().to_string()).collect();
    parts.join(separator)
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(3)).chain("...".chars()).collect()
}

fn show(status: Status) -> String {
    match status {
        Status::Running => "running".to_owned(),
        Status::Exited(outcome) => format!("exited ({})", outcome.code),
        Status::Lost => "killed".to_owned(),
    }
}

fn ago(then: u64) -> String {
    let seconds = state::now().saturating_sub(then);
    let (number, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..86_400 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{number} {unit} ago")
}

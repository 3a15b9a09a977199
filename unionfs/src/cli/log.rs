//! Where the server's own words go: to standard error.
//!
//! What formats and writes them is made with the first word. Most servers never say one, and each mount would wait for it.

use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Shows warnings and errors, and in a `debug` run everything.
pub(super) fn start(debug: bool) {
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::WARN };
    let log = Log { level, writer: OnceLock::new() };
    if let Err(error) = tracing::subscriber::set_global_default(log) {
        super::complain(&format!("cannot log: {error}"));
    }
}

struct Log {
    level: LevelFilter,
    writer: OnceLock<Box<dyn Subscriber + Send + Sync>>,
}

impl Log {
    fn writer(&self) -> &(dyn Subscriber + Send + Sync) {
        let make = || {
            let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(self.level);
            Box::new(log.with_ansi(false).without_time().with_target(false).finish()) as _
        };
        &**self.writer.get_or_init(make)
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        self.writer().event(event);
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.writer().new_span(span)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        self.writer().record(span, values);
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        self.writer().record_follows_from(span, follows);
    }

    fn enter(&self, span: &Id) {
        self.writer().enter(span);
    }

    fn exit(&self, span: &Id) {
        self.writer().exit(span);
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.writer().clone_span(id)
    }

    fn try_close(&self, id: Id) -> bool {
        self.writer().try_close(id)
    }
}

//! What is negotiated with the kernel at the start of a connection, and what follows from it for every answer.

use crate::fuse::wire::flags::InitFlags;
use crate::fuse::wire::reply::{Ttl, Ttls};
use crate::fuse::wire::{InitIn, InitOut, MINOR, MINOR_MIN};
use crate::options::{DataMode, MountOptions};

/// Requests that the kernel may have under way in the background, such as read-ahead. Its own default of 12 keeps few
/// of several threads busy.
const MAX_BACKGROUND: u16 = 64;

/// Background requests above which the kernel stops reading ahead.
const CONGESTION_THRESHOLD: u16 = 48;

/// Size of a page on the wire.
const PAGE: u32 = 4096;

/// What is always wanted.
///
/// Not among it: `POSIX_LOCKS` and `FLOCK_LOCKS`, because locks that the kernel keeps itself are right for a single
/// mount and cost no request; those about splicing, at which the kernel does not look; `ASYNC_DIO`, because the kernel does
/// not drop pages when such a write ends, so what was read into them meanwhile would stay, and be old.
const WANTED: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::PARALLEL_DIROPS)
    .union(InitFlags::DO_READDIRPLUS)
    .union(InitFlags::DONT_MASK)
    // Without it each write(2) asks for security.capability first: a round trip for every write.
    .union(InitFlags::HANDLE_KILLPRIV_V2)
    .union(InitFlags::SETXATTR_EXT)
    .union(InitFlags::NO_EXPORT_SUPPORT)
    .union(InitFlags::HAS_EXPIRE_ONLY)
    // The union looks at no caller but that of a creation, whose ids are mapped.
    .union(InitFlags::ALLOW_IDMAP)
    .union(InitFlags::INIT_EXT);

/// What the kernel may remember because nothing changes behind its back; left out with `timeout=0`.
const CACHING: InitFlags = InitFlags::CACHE_SYMLINKS.union(InitFlags::EXPLICIT_INVAL_DATA);

/// Who keeps track of open files, or directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// The server: each open is answered with a handle.
    Served,
    /// The kernel: the first open is answered ENOSYS, and none is sent again.
    Unserved,
}

/// Returns who keeps track. The kernel then also keeps pages and listings, so it must be allowed to.
fn opens(options: &MountOptions, offer: &InitIn, caches: bool, needs: InitFlags) -> Opens {
    let wanted = match options.data {
        // Measured: opening, reading and closing a small file takes a third of the time without OPEN and RELEASE.
        DataMode::Auto | DataMode::Cached => true,
        // It is by opens that files are handed over.
        DataMode::Passthrough => needs == InitFlags::NO_OPENDIR_SUPPORT,
        DataMode::Handles => false,
    };
    if wanted && caches && offer.flags.contains(needs) { Opens::Unserved } else { Opens::Served }
}

/// What was agreed on, as the handler needs it. Immutable.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long the kernel may use what it is told.
    pub ttls: Ttls,
    /// Who keeps track of open files.
    pub opens: Opens,
    /// Who keeps track of open directories.
    pub opendirs: Opens,
    /// Closing a file asks for a FLUSH.
    pub flush: bool,
    /// fsync has an effect.
    pub syncs: bool,
    /// There are extended attributes.
    pub xattrs: bool,
    /// The kernel leaves the umask to us.
    pub dont_mask: bool,
    /// SETXATTR has its own flags.
    pub setxattr_ext: bool,
    /// Largest write in bytes.
    pub max_write: u32,
    /// Requests go over io_uring.
    pub uring: bool,
    /// Upper files are handed over to the kernel.
    pub passthrough: bool,
}

impl Config {
    /// Returns who opens, reads and writes files, and why so.
    pub const fn data_mode(&self) -> &'static str {
        match (self.passthrough, self.opens) {
            (true, _) => "passthrough: the kernel reads and writes upper files itself, as asked",
            (false, Opens::Unserved) => "cached: the kernel opens files without asking, which costs least",
            (false, Opens::Served) => {
                "handles: as asked, or because this kernel or timeout=0 allows no other"
            }
        }
    }

    /// Returns whether the kernel may keep data and listings.
    pub const fn caches(&self) -> bool {
        !self.ttls.attr.is_zero()
    }
}

/// The outcome of INIT.
#[derive(Clone, Copy, Debug)]
pub struct Negotiation {
    /// What to tell the kernel.
    pub answer: InitOut,
    /// What follows for us.
    pub config: Config,
}

impl Negotiation {
    /// Chooses from what the kernel offers; none if it is too old to be served.
    pub fn choose(options: &MountOptions, offer: &InitIn, want_uring: bool) -> Option<Self> {
        if offer.minor < MINOR_MIN {
            return None;
        }
        let ttl = Ttl::from_secs(options.timeout);
        let caches = !ttl.is_zero();
        let files = opens(options, offer, caches, InitFlags::NO_OPEN_SUPPORT);
        let directories = opens(options, offer, caches, InitFlags::NO_OPENDIR_SUPPORT);
        let mut wanted = WANTED;
        wanted.set(CACHING, caches);
        wanted.set(InitFlags::NO_OPEN_SUPPORT, files == Opens::Unserved);
        wanted.set(InitFlags::NO_OPENDIR_SUPPORT, directories == Opens::Unserved);
        // O_TRUNC would travel in an OPEN that is never served.
        wanted.set(InitFlags::ATOMIC_O_TRUNC, files == Opens::Served);
        wanted.set(InitFlags::POSIX_ACL, !options.noacl && !options.noxattrs);
        wanted.set(InitFlags::WRITEBACK_CACHE, options.writeback && !options.is_read_only());
        wanted.set(InitFlags::OVER_IO_URING, want_uring);
        // The kernel takes one of the two.
        let passthrough =
            options.data == DataMode::Passthrough && !wanted.contains(InitFlags::WRITEBACK_CACHE);
        wanted.set(InitFlags::PASSTHROUGH, passthrough);
        let flags = wanted & offer.flags;
        // Without MAX_PAGES the kernel's requests have at most 32 pages.
        let pages_limit = if flags.contains(InitFlags::MAX_PAGES) { 256 } else { 32 };
        let max_pages = options.max_write.div_ceil(PAGE).clamp(1, pages_limit);
        let max_write = options.max_write.clamp(PAGE, max_pages * PAGE);
        let answer = InitOut {
            minor: offer.minor.min(MINOR),
            max_readahead: offer.max_readahead,
            flags,
            max_background: MAX_BACKGROUND,
            congestion_threshold: CONGESTION_THRESHOLD,
            max_write,
            time_gran: 1,
            max_pages: u16::try_from(max_pages).unwrap_or(u16::MAX),
            max_stack_depth: u32::from(flags.contains(InitFlags::PASSTHROUGH)),
            request_timeout: 0,
        };
        let config = Config {
            ttls: Ttls { entry: ttl, attr: ttl, negative: ttl },
            opens: files,
            opendirs: directories,
            // Every write is done when it is answered.
            flush: false,
            syncs: options.fsync.syncs(),
            xattrs: !options.noxattrs,
            dont_mask: flags.contains(InitFlags::DONT_MASK),
            setxattr_ext: flags.contains(InitFlags::SETXATTR_EXT),
            max_write,
            uring: flags.contains(InitFlags::OVER_IO_URING),
            passthrough: flags.contains(InitFlags::PASSTHROUGH),
        };
        Some(Self { answer, config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(flags: InitFlags) -> InitIn {
        InitIn { major: 7, minor: 45, max_readahead: 131_072, flags }
    }

    #[test]
    fn only_what_is_offered_is_taken() {
        let options = MountOptions::default();
        let chosen = Negotiation::choose(&options, &offer(InitFlags::ASYNC_READ), true).unwrap();
        assert_eq!(chosen.answer.flags, InitFlags::ASYNC_READ);
        assert_eq!((chosen.answer.max_pages, chosen.answer.max_write), (32, 131_072));
        assert!(!chosen.config.uring && !chosen.config.dont_mask && !chosen.config.setxattr_ext);
    }

    #[test]
    fn everything_offered_gives_large_requests_and_no_locks() {
        let chosen = Negotiation::choose(&MountOptions::default(), &offer(InitFlags::all()), true).unwrap();
        assert_eq!((chosen.answer.max_pages, chosen.answer.max_write), (256, 1 << 20));
        assert!(chosen.config.uring && chosen.config.caches());
        for off in [InitFlags::POSIX_LOCKS, InitFlags::FLOCK_LOCKS, InitFlags::AUTO_INVAL_DATA] {
            assert!(!chosen.answer.flags.intersects(off), "{off:?}");
        }
        assert!(!chosen.answer.flags.contains(InitFlags::WRITEBACK_CACHE));
    }

    #[test]
    fn a_timeout_of_zero_caches_nothing() {
        let options = MountOptions { timeout: 0.0, ..MountOptions::default() };
        let chosen = Negotiation::choose(&options, &offer(InitFlags::all()), false).unwrap();
        assert!(!chosen.answer.flags.intersects(CACHING));
        assert!(!chosen.config.caches() && chosen.config.ttls.negative.is_zero());
    }

    #[test]
    fn a_kernel_older_than_the_messages_is_refused() {
        let mut old = offer(InitFlags::all());
        old.minor = MINOR_MIN - 1;
        assert!(Negotiation::choose(&MountOptions::default(), &old, false).is_none());
        old.minor = 99;
        assert_eq!(Negotiation::choose(&MountOptions::default(), &old, false).unwrap().answer.minor, MINOR);
    }
}

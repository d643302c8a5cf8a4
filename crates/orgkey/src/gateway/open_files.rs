//! The operating system's limit of open files, of which each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Both listeners full, the calls to the issuer, and files.
const WANTED: u64 = 16_384;

/// Raises the limit of this process as far as it may. Many systems begin at 1,024, which would be used up before the bound of
/// connections, and then neither listener accepts.
pub(super) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let (Some(current), maximum) = (limit.current, limit.maximum) else {
        return;
    };
    let raised = maximum.map_or(WANTED, |maximum| maximum.min(WANTED));
    if current < raised {
        let limit = Rlimit {
            current: Some(raised),
            maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, current, "limit of open files is not raised");
        }
    }
    if raised < WANTED && current < WANTED {
        tracing::warn!(
            limit = raised,
            wanted = WANTED,
            "limit of open files is low, see LimitNOFILE"
        );
    }
}

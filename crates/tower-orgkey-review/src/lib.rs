#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod changes;
mod coverage;
mod evidence;
mod findings;
mod fold;
mod keys;
mod least;
mod line;
mod name;
mod ocsf;
mod page;
mod policy;
mod previous;
mod ranges;
mod report;
mod review;
mod seen;
mod segment;
mod source;
mod store;
mod streamed;
mod table;
mod text;
mod time;

pub use self::coverage::Coverage;
pub use self::evidence::{Evidence, Lines, OverlapError};
pub use self::fold::{EvidenceBuilder, Problem, Progress};
pub use self::keys::{KeyFacts, KeyList, KeyListError};
pub use self::name::{InvalidTemplate, NameTemplate};
pub use self::policy::ReviewPolicy;
pub use self::previous::{PreviousReview, PreviousReviewError};
pub use self::report::{
    ChangedKey, Changes, Decision, Finding, FindingKind, KeyReview, ReviewReport, RevokedKey,
    WeekCount,
};
pub use self::review::Review;
pub use self::store::ReadError;
pub use self::streamed::StreamedReport;
pub use self::time::{InvalidTime, UnixMillis};

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Deserialize;
use tower_orgkey_review::{
    Decision, Evidence, EvidenceBuilder, KeyList, NameTemplate, PreviousReview, Review,
    ReviewPolicy, ReviewReport, StreamedReport, UnixMillis,
};

use super::issuer::Issuers;
use super::progress::ProgressBar;

/// Reviews keys: which are used, which scopes they need, and what has to be decided.
///
/// Reads files of tower-orgkey-audit of any number of nodes, line by line. Prints how many findings there are to decide on.
/// Exits with 2 if an argument, a file or the issuer's list cannot be read, and with 0 otherwise.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The audit files, of all nodes.
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "evidence")]
    audit: Vec<PathBuf>,
    /// Files that `--save-evidence` has written, in place of audit files.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    evidence: Vec<PathBuf>,
    /// Store what the audit files say, so that they can be deleted.
    #[arg(long, value_name = "FILE", requires = "audit")]
    save_evidence: Option<PathBuf>,
    /// The configuration file of the gateway: the lists of keys are read from its issuers. All must be Kinde; with others, use
    /// `--keys` with the keys of all of them, with ids and organizations as in the audit files.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "keys",
        conflicts_with = "keys"
    )]
    config: Option<PathBuf>,
    /// The list of keys as JSON, in place of the issuer.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// The report of the last review, as JSON.
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
    /// What reviewers decided: a TOML file with `[[decision]]`.
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
    /// Show this organization only. The JSON for the next review must be one without it. With several issuers that do not
    /// share their organizations, the code begins with the name of the issuer and a colon.
    #[arg(long, value_name = "CODE")]
    org: Option<String>,
    /// The codes of all organizations, one a line, as in the audit files: see `--org`.
    #[arg(long, value_name = "FILE")]
    organizations: Option<PathBuf>,
    /// How names of keys are made up, such as `{org}-{env}-{purpose}`.
    #[arg(long, value_name = "TEMPLATE")]
    name_template: Option<NameTemplate>,
    /// How many nodes recorded requests at every moment, at least. Without it, a node whose files are missing is not noticed
    /// while another one has events.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    nodes: Option<u32>,
    /// How many days are reviewed.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    window_days: u32,
    /// After how many days a secret must be rotated.
    #[arg(long, value_name = "DAYS", default_value_t = 90)]
    rotation_days: u32,
    /// Where the report is written to: `.html`, `.csv`, `.json`, or `.jsonl` for OCSF events. Can be repeated.
    #[arg(long, value_name = "FILE", required = true)]
    out: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    match try_run(args) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("orgkey review: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns what is printed.
fn try_run(args: &Args) -> Result<String, String> {
    // Before anything that takes long.
    args.check_outputs()?;
    let formats: Vec<_> = args
        .out
        .iter()
        .map(|path| Format::of(path))
        .collect::<Result<_, _>>()?;
    let (previous_file, previous) = args.previous.as_deref().map(previous).transpose()?.unzip();
    let decisions = args
        .decisions
        .as_deref()
        .map(decisions)
        .transpose()?
        .unwrap_or_default();
    let policy = args.policy()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let (mut keys, issuers) = match (&args.keys, &args.config) {
        (Some(path), _) => {
            let file = File::open(path).map_err(|error| named(path, &error))?;
            let list = KeyList::read(BufReader::new(file), UnixMillis::now());
            (list.map_err(|error| named(path, &error))?, None)
        }
        (None, Some(config)) => runtime.block_on(async {
            let issuers = Issuers::connect(config).await?;
            Ok::<_, String>((issuers.list().await?, Some(issuers)))
        })?,
        (None, None) => return Err("either --keys or --config is required".to_owned()),
    };
    let evidence = args.evidence(&policy, keys.listed_at)?;
    if let Some(issuers) = issuers {
        issuers.check(evidence.key_ids(policy.window_start(keys.listed_at)))?;
        let mut known = evidence.key_ids(policy.window_start(keys.listed_at));
        known.extend(previous.iter().flat_map(PreviousReview::key_ids));
        let adding = issuers.add_organizations(&mut keys, |key| known.contains(key.id.as_str()));
        runtime.block_on(adding)?;
    }
    let mut review = Review::of(&keys, &evidence, &policy).decisions(&decisions);
    if let Some(previous) = &previous {
        review = review.previous(previous);
    }
    let mut report = review.stream();
    if let (Some(path), Some(mut file)) = (&args.previous, previous_file) {
        file.rewind().map_err(|error| named(path, &error))?;
        let read = report.read_settled(BufReader::new(file));
        read.map_err(|error| named(path, &error))?;
    }
    unmatched(&report, &decisions);
    let report = match &args.org {
        Some(org) => {
            let own = report.for_organization(org);
            if own.keys.is_empty() && own.findings.is_empty() {
                return Err("--org: no key and no request is of this organization".to_owned());
            }
            Report::Organization(Box::new(own))
        }
        None => Report::All(Box::new(report)),
    };
    for (path, format) in args.out.iter().zip(formats) {
        write(path, |file| {
            let mut out = BufWriter::with_capacity(256 * 1024, file);
            report.write(format, &mut out)?;
            out.flush()
        })?;
    }
    Ok(report.summary())
}

/// A report about all keys, which is not in memory, or about one organization.
enum Report<'a> {
    All(Box<StreamedReport<'a>>),
    Organization(Box<ReviewReport>),
}

impl Report<'_> {
    fn write(&self, format: Format, out: &mut impl Write) -> io::Result<()> {
        match (self, format) {
            (Self::All(report), Format::Html) => report.write_html(out),
            (Self::All(report), Format::Csv) => report.write_csv(out),
            (Self::All(report), Format::Ocsf) => report.write_ocsf(out),
            (Self::All(report), Format::Json) => Ok(serde_json::to_writer_pretty(out, report)?),
            (Self::Organization(report), Format::Html) => {
                out.write_all(report.to_html().as_bytes())
            }
            (Self::Organization(report), Format::Csv) => out.write_all(report.to_csv().as_bytes()),
            (Self::Organization(report), Format::Ocsf) => {
                out.write_all(report.to_ocsf().as_bytes())
            }
            (Self::Organization(report), Format::Json) => {
                Ok(serde_json::to_writer_pretty(out, report)?)
            }
        }
    }

    fn summary(&self) -> String {
        let (keys, findings, open, coverage) = match self {
            Self::All(report) => (
                report.key_count(),
                report.finding_count(),
                report.open_count(),
                report.coverage(),
            ),
            Self::Organization(report) => {
                let open = report.findings.iter().filter(|finding| finding.is_open());
                let findings = report.findings.len();
                (report.keys.len(), findings, open.count(), &report.coverage)
            }
        };
        let coverage = coverage.statement();
        format!("{keys} keys, {findings} findings, {open} to be decided on; {coverage}")
    }
}

impl Args {
    fn policy(&self) -> Result<ReviewPolicy, String> {
        let mut policy = ReviewPolicy::new()
            .window_days(self.window_days)
            .rotation_days(self.rotation_days);
        if let Some(nodes) = self.nodes {
            policy = policy.nodes(nodes);
        }
        if let Some(template) = &self.name_template {
            policy = policy.name_template(template.clone());
        }
        if let Some(path) = &self.organizations {
            let text = text(path)?;
            let codes: BTreeSet<_> = text
                .lines()
                .map(str::trim)
                .filter(|it| !it.is_empty())
                .collect();
            policy = policy.organizations(codes);
        }
        Ok(policy)
    }

    /// Reads the audit files and the stored evidence.
    fn evidence(&self, policy: &ReviewPolicy, now: UnixMillis) -> Result<Evidence, String> {
        let mut builder = EvidenceBuilder::new();
        // What is stored may be for another window.
        if self.save_evidence.is_none() {
            builder = builder.since(policy.window_start(now));
        }
        let mut stored = Evidence::default();
        for path in &self.evidence {
            let file = File::open(path).map_err(|error| named(path, &error))?;
            let read = Evidence::read(BufReader::new(file)).map_err(|error| named(path, &error))?;
            stored = stored.merge(read).map_err(|error| named(path, &error))?;
        }
        let sizes = self.audit.iter().map(|path| {
            Ok(fs::metadata(path)
                .map_err(|error| named(path, &error))?
                .len())
        });
        let mut bar = ProgressBar::on_terminal(sizes.sum::<Result<u64, String>>()?);
        for path in &self.audit {
            let file = File::open(path).map_err(|error| named(path, &error))?;
            let input = BufReader::with_capacity(256 * 1024, file);
            let name = path.display().to_string();
            let read = builder.read(&name, input, |progress| {
                bar.show(progress.lines, progress.bytes);
            });
            read.map_err(|error| named(path, &error))?;
        }
        bar.end();
        for problem in builder.problems() {
            eprintln!("orgkey review: {problem}");
        }
        let evidence = builder.finish();
        if let Some(path) = &self.save_evidence {
            write(path, |file| evidence.write(BufWriter::new(file)))?;
        }
        let merged = stored.merge(evidence);
        merged.map_err(|error| format!("--audit and --evidence: {error}"))
    }

    /// Refuses to replace a file that is read.
    fn check_outputs(&self) -> Result<(), String> {
        let one = [
            &self.config,
            &self.keys,
            &self.previous,
            &self.decisions,
            &self.organizations,
        ];
        let inputs = self.audit.iter().chain(&self.evidence);
        let inputs = inputs.chain(one.into_iter().flatten());
        let inputs: BTreeSet<_> = inputs.filter_map(|path| identity(path)).collect();
        let is_read = |path: &Path| identity(path).is_some_and(|it| inputs.contains(&it));
        let mut outputs = self.out.iter().chain(&self.save_evidence);
        match outputs.find(|path| is_read(path) || is_read(&temporary(path))) {
            Some(path) => Err(named(path, &"this file is read, and must not be replaced")),
            None => Ok(()),
        }
    }
}

/// What a file has in common with its other names, also with hard links. `None` if it does not exist.
#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;

    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// What a file has in common with its other names. `None` if it does not exist.
#[cfg(not(unix))]
fn identity(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok()
}

/// Prints the decisions whose finding does not exist: the id may be misspelt.
fn unmatched(report: &StreamedReport<'_>, decisions: &[Decision]) {
    if decisions.is_empty() {
        return;
    }
    let mut ids: BTreeSet<_> = decisions.iter().map(|it| it.finding.as_str()).collect();
    for finding in report.findings() {
        ids.remove(finding.id.as_str());
    }
    for id in ids {
        eprintln!("orgkey review: no finding is {id:?}");
    }
}

/// What a report is written as.
#[derive(Clone, Copy)]
enum Format {
    Html,
    Csv,
    Json,
    Ocsf,
}

impl Format {
    fn of(path: &Path) -> Result<Self, String> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("html") => Ok(Self::Html),
            Some("csv") => Ok(Self::Csv),
            Some("json") => Ok(Self::Json),
            Some("jsonl") => Ok(Self::Ocsf),
            _ => Err(named(
                path,
                &"the name must end in .html, .csv, .json or .jsonl",
            )),
        }
    }
}

/// The name of a file until it is complete.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// Replaces a file as a whole, so that one that was read before is not lost halfway.
fn write(path: &Path, content: impl FnOnce(&File) -> io::Result<()>) -> Result<(), String> {
    let temporary = temporary(path);
    let written = File::create(&temporary)
        .and_then(|file| content(&file).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        // A disk that is full would stay full. The file may not even exist.
        let _ = fs::remove_file(&temporary);
        named(path, &error)
    })
}

/// Reads a report. Returns its file too, which is read again.
fn previous(path: &Path) -> Result<(File, PreviousReview), String> {
    let mut file = File::open(path).map_err(|error| named(path, &error))?;
    if file.stream_position().is_err() {
        return Err(named(
            path,
            &"is read twice, so it must be a file and no pipe",
        ));
    }
    let read = PreviousReview::read(BufReader::new(&file)).map_err(|error| named(path, &error))?;
    Ok((file, read))
}

fn decisions(path: &Path) -> Result<Vec<Decision>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Decisions {
        #[serde(default)]
        decision: Vec<Decision>,
    }

    let decisions: Decisions = toml::from_str(&text(path)?).map_err(|error| named(path, &error))?;
    Ok(decisions.decision)
}

fn text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| named(path, &error))
}

fn named(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use super::billing::{Billing, Write};
use super::examination::Examination;
use super::report::Report;
use super::secret::{Keys, Secret};
use super::table::{File, IssuerTable, Kind, Selected};

const GOOD_KEY: &str = "ORGKEY_GOOD_KEY";
const REVOKED_KEY: &str = "ORGKEY_REVOKED_KEY";

/// Asks an issuer how it answers, and says what to configure.
///
/// Sends the client secret and the keys only after the issuer's certificate was verified and its address was shown, and prints
/// none of them. Requests two tokens, up to two more if the audience is wrong, and one more if the list of keys rejects the token
/// and verify answers 401 or 403 to an invalid key. Writes nothing at the issuer without `--write-test-agreement`. Exits with 1 if
/// something would not work, and with 2 if it cannot begin.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The configuration file of the gateway, of which the table `[issuer]` is read.
    #[arg(long, value_name = "FILE", required_unless_present = "client_id")]
    config: Option<PathBuf>,
    /// The URL of the issuer. With `--config`, selects one of several issuers.
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// The id of this application at the issuer.
    #[arg(
        long,
        value_name = "ID",
        conflicts_with = "config",
        requires = "issuer"
    )]
    client_id: Option<String>,
    /// The file with the secret of this application.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    client_secret_file: Option<PathBuf>,
    /// The environment variable with the secret of this application.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "client_secret_file"])]
    client_secret_env: Option<String>,
    /// The audience of tokens. `<issuer>/api` by default.
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    audience: Option<String>,
    /// The id of the API that keys must be issued for.
    #[arg(long, value_name = "ID", conflicts_with = "config")]
    api_id: Option<String>,
    /// Read the good key from the first line of the standard input, and the revoked key from the second.
    #[arg(long)]
    keys_from_stdin: bool,
    /// The environment variable with an active key of an organization.
    #[arg(long, value_name = "NAME", default_value = GOOD_KEY)]
    good_key_env: String,
    /// The environment variable with a key that was revoked.
    #[arg(long, value_name = "NAME", default_value = REVOKED_KEY)]
    revoked_key_env: String,
    /// The code of an organization. Also checks whether it can be billed for the metered feature `--billing-feature`.
    #[arg(long, value_name = "CODE", requires = "billing_feature")]
    billing_org: Option<String>,
    /// The key of a metered feature.
    #[arg(long, value_name = "KEY", requires = "billing_org")]
    billing_feature: Option<String>,
    /// Send a total to this agreement of the organization, which Kinde bills: only for an agreement that nothing else sends to.
    #[arg(long, value_name = "ID", requires_all = ["billing_org", "write_test_total"])]
    write_test_agreement: Option<String>,
    /// The total to send: the usage that Kinde shows for the agreement and its present billing period, 0 if it shows none. A lower
    /// one lowers the bill.
    #[arg(long, value_name = "UNITS", requires = "write_test_agreement")]
    write_test_total: Option<u64>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    match try_run(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("orgkey doctor: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether the configuration works as it is.
fn try_run(args: &Args) -> Result<bool, String> {
    let Selected {
        issuer: table,
        other_prefixes,
        has_identity,
    } = args.selected()?;
    let secret = table.secret()?;
    let keys = args.keys()?;
    for (name, key) in [("good", &keys.good), ("revoked", &keys.revoked)] {
        if key
            .as_ref()
            .is_some_and(|key| !table.is_asked_about(key, &other_prefixes))
        {
            return Err(format!(
                "by its prefix, the {name} key is not one of this issuer's: nothing was sent"
            ));
        }
    }
    let billing = args.billing();
    let mut report = Report::default();
    for secret in [Some(&secret), keys.good.as_ref(), keys.revoked.as_ref()]
        .into_iter()
        .flatten()
    {
        report.scrubber.add(secret);
    }
    let examination = Examination {
        table: &table,
        secret: &secret,
        keys: &keys,
        has_identity,
        billing: billing.as_ref(),
        announce: &|text| eprintln!("orgkey doctor: {text}"),
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?
        .block_on(examination.run(&mut report));
    let text = if args.json {
        report.to_json()
    } else {
        report.to_table()
    };
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| error.to_string())?;
    Ok(report.works())
}

impl Args {
    fn selected(&self) -> Result<Selected, String> {
        if let Some(config) = &self.config {
            return File::read(config, self.issuer.as_deref());
        }
        let (Some(url), Some(client_id)) = (&self.issuer, &self.client_id) else {
            return Err("either --config or --issuer and --client-id are required".to_owned());
        };
        let issuer = IssuerTable {
            name: None,
            prefixes: None,
            kind: Kind::Kinde,
            url: url.clone(),
            client_id: client_id.clone(),
            client_secret_file: self.client_secret_file.clone(),
            client_secret_env: self.client_secret_env.clone(),
            audience: self.audience.clone(),
            api_id: self.api_id.clone(),
            unauthorized_means: None,
        };
        Ok(Selected {
            issuer,
            other_prefixes: Vec::new(),
            has_identity: false,
        })
    }

    fn billing(&self) -> Option<Billing> {
        let write = self.write_test_agreement.clone().zip(self.write_test_total);
        Some(Billing {
            organization: self.billing_org.clone()?,
            feature: self.billing_feature.clone()?,
            write: write.map(|(agreement, total)| Write { agreement, total }),
        })
    }

    fn keys(&self) -> Result<Keys, String> {
        if self.keys_from_stdin {
            return Keys::of_stdin();
        }
        let read = |name: &String, default: &str| match Secret::of_env(name)? {
            None if name != default => Err(format!("the variable {name} is not set")),
            key => Ok(key),
        };
        Ok(Keys {
            good: read(&self.good_key_env, GOOD_KEY)?,
            revoked: read(&self.revoked_key_env, REVOKED_KEY)?,
        })
    }
}

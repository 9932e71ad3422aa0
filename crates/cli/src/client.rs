//! The client side: where the services are, which token is sent, and what an error says.
//!
//! Left out: what is asked (the verbs). Invariant: the token of a data directory is sent only to the addresses of that directory.

use std::{
    collections::BTreeMap,
    error::Error as _,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use exchequer_auth::BearerToken;
use exchequer_event::v1::{
    agent_service_client::AgentServiceClient, ledger_service_client::LedgerServiceClient,
    metering_service_client::MeteringServiceClient,
};
use exchequer_tlog::VerifierKey;
use serde::{Deserialize, Serialize};
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

/// Name of the file in a data directory that tells clients where to go.
pub const CLIENT_FILE: &str = "client.json";
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer: a page of the largest entries.
const MAX_ANSWER_BYTES: usize = 128 << 20;

/// What `up` leaves for clients.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientFile {
    /// gRPC address.
    pub grpc: String,
    /// HTTP address.
    pub http: String,
    /// Token, if `up` has an issuer of its own.
    pub token: Option<String>,
    /// The log's verifier key.
    pub verifier_key: String,
}

impl ClientFile {
    /// Replaces the file as a whole; it holds a token, so it is its owner's only.
    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        let staged = file.with_extension("new");
        let written = || -> io::Result<()> {
            match std::fs::remove_file(&staged) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut new =
                std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
            serde_json::to_writer_pretty(&mut new, self)?;
            new.write_all(b"\n")?;
            std::fs::rename(&staged, file)
        };
        written().with_context(|| format!("writing {}", file.display()))
    }
}

/// How services are found.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// Data directory of a running `exchequer up`, which names the addresses and a token
    #[arg(long, value_name = "DIR", env = "EXCHEQUER_DATA", default_value = ".exchequer")]
    pub data: PathBuf,
    /// gRPC address of all services, or of each: `ledger=HOST:PORT,metering=HOST:PORT,agent=HOST:PORT`
    #[arg(long, value_name = "ADDR", env = "EXCHEQUER_GRPC")]
    pub grpc: Option<String>,
    /// HTTP address of the log's files
    #[arg(long, value_name = "ADDR", env = "EXCHEQUER_HTTP")]
    pub http: Option<String>,
    /// Bearer token, or @FILE that holds it
    #[arg(long, value_name = "TOKEN", env = "EXCHEQUER_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// The answer was no. The process ends with status 1, where for all other errors it is 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Sends the token, if there is one.
#[derive(Clone, Debug)]
pub struct Credentials(Option<BearerToken>);

impl Interceptor for Credentials {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match &mut self.0 {
            Some(token) => token.call(request),
            None => Ok(request),
        }
    }
}

type Transport = InterceptedService<Channel, Credentials>;
/// A client of metering.
pub type Metering = MeteringServiceClient<Transport>;

impl Connection {
    /// What `up` left in the data directory, if it did.
    fn file(&self) -> anyhow::Result<Option<ClientFile>> {
        let path = self.data.join(CLIENT_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(path.display().to_string()),
        };
        Ok(Some(serde_json::from_slice(&text).context(path.display().to_string())?))
    }

    /// The token to send: the given one, or the data directory's where its addresses are used too.
    pub fn token(&self) -> anyhow::Result<Option<String>> {
        match &self.token {
            Some(token) => match token.strip_prefix('@') {
                Some(path) => {
                    Ok(Some(std::fs::read_to_string(path).context(path.to_owned())?.trim().to_owned()))
                }
                None => Ok(Some(token.clone())),
            },
            None if self.grpc.is_none() && self.http.is_none() => {
                Ok(self.file()?.and_then(|file| file.token))
            }
            None => Ok(None),
        }
    }

    /// URL of the log's files, without a slash at the end.
    pub fn http_url(&self) -> anyhow::Result<String> {
        let address = match &self.http {
            Some(address) => Some(address.clone()),
            None => self.file()?.map(|file| file.http),
        };
        let address = address.with_context(|| self.nowhere("--http"))?;
        Ok(url(&address).trim_end_matches('/').to_owned())
    }

    /// The log's key as the data directory names it. None where other addresses are used.
    pub fn verifier_key(&self) -> anyhow::Result<Option<VerifierKey>> {
        if self.grpc.is_some() || self.http.is_some() {
            return Ok(None);
        }
        let Some(file) = self.file()? else { return Ok(None) };
        Ok(Some(file.verifier_key.parse().context("verifier_key of client.json")?))
    }

    /// Notes the log's new key in the data directory, where its addresses are used: the next `verify` needs it.
    pub fn note_verifier_key(&self, key: &str) -> anyhow::Result<()> {
        match self.file()? {
            Some(file) if self.grpc.is_none() && self.http.is_none() => {
                ClientFile { verifier_key: key.to_owned(), ..file }.write(&self.data.join(CLIENT_FILE))
            }
            _ => Ok(()),
        }
    }

    /// The ledger.
    pub async fn ledger(&self) -> anyhow::Result<LedgerServiceClient<Transport>> {
        let (channel, credentials) = self.open("ledger").await?;
        let client = LedgerServiceClient::with_interceptor(channel, credentials);
        Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// Metering.
    pub async fn metering(&self) -> anyhow::Result<Metering> {
        let (channel, credentials) = self.open("metering").await?;
        let client = MeteringServiceClient::with_interceptor(channel, credentials);
        Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// The agent.
    pub async fn agent(&self) -> anyhow::Result<AgentServiceClient<Transport>> {
        let (channel, credentials) = self.open("agent").await?;
        Ok(AgentServiceClient::with_interceptor(channel, credentials))
    }

    async fn open(&self, service: &str) -> anyhow::Result<(Channel, Credentials)> {
        let token = self.token()?.map(|token| BearerToken::fixed(&token)).transpose().context("--token")?;
        let address = match &self.grpc {
            Some(given) => address_of(given, service)?,
            None => self.file()?.with_context(|| self.nowhere("--grpc"))?.grpc,
        };
        let endpoint =
            Endpoint::from_shared(url(&address)).with_context(|| format!("{address} is no address"))?;
        let connected = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
        let channel = connected.map_err(|error| match error.source() {
            Some(cause) => anyhow::anyhow!("{service} at {address} can't be reached: {cause}"),
            None => anyhow::anyhow!("{service} at {address} can't be reached: {error}"),
        })?;
        Ok((channel, Credentials(token)))
    }

    fn nowhere(&self, flag: &str) -> String {
        format!(
            "no service is named: there is no {}; start `exchequer up`, or give --data or {flag}",
            self.data.join(CLIENT_FILE).display()
        )
    }
}

fn url(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}

/// One service's address out of `ADDR` or `ledger=ADDR,metering=ADDR,agent=ADDR`.
fn address_of(given: &str, service: &str) -> anyhow::Result<String> {
    if !given.contains('=') {
        return Ok(given.to_owned());
    }
    let mut named = BTreeMap::new();
    for part in given.split(',') {
        match part.split_once('=') {
            Some((name @ ("ledger" | "metering" | "agent"), address)) => named.insert(name, address),
            _ => bail!("--grpc: `{part}` is not SERVICE=ADDR with a service of ledger, metering, agent"),
        };
    }
    named
        .get(service)
        .map(|address| (*address).to_owned())
        .with_context(|| format!("--grpc names no {service}"))
}

/// What a refusal says, in one line: code, message, faulty fields, details.
pub fn explain(status: &Status) -> String {
    let mut text = format!("{}: {}", code_name(status.code()), status.message());
    let details = status.get_error_details();
    for violation in details.bad_request().into_iter().flat_map(|faults| &faults.field_violations) {
        let part = format!("{}: {}", violation.field, violation.description);
        if !status.message().contains(&part) {
            text = format!("{text}; {part}");
        }
    }
    if let Some(info) = details.error_info() {
        let metadata: BTreeMap<_, _> = info.metadata.iter().collect();
        let told = metadata.iter().filter(|(_, value)| !value.is_empty());
        let pairs: Vec<_> = told.map(|(key, value)| format!("{key}={value}")).collect();
        text = format!(
            "{text} [{}{}{}]",
            info.reason,
            if pairs.is_empty() { "" } else { ": " },
            pairs.join(", ")
        );
    }
    if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
        text = format!("{text} (try again in {} ms)", delay.as_millis());
    }
    text.replace('\n', " ")
}

fn code_name(code: tonic::Code) -> String {
    let camel = format!("{code:?}");
    let mut name = String::new();
    for (place, letter) in camel.char_indices() {
        if letter.is_uppercase() && place > 0 {
            name.push('_');
        }
        name.extend(letter.to_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_for_all_services_or_for_each() {
        assert_eq!(address_of("h:1", "agent").unwrap(), "h:1");
        assert_eq!(address_of("ledger=h:1,agent=h:2", "agent").unwrap(), "h:2");
        assert!(address_of("ledger=h:1", "agent").unwrap_err().to_string().contains("names no agent"));
        assert!(address_of("king=h:1", "agent").is_err());
    }

    #[test]
    fn a_refusal_is_explained_in_one_line_with_all_its_details() {
        let mut details = tonic_types::ErrorDetails::new();
        details.add_bad_request_violation("a", "is wrong").add_bad_request_violation("b", "is too");
        details.set_error_info("WHY", "exchequer", [("scope".to_owned(), "acme".to_owned())]);
        let status = Status::with_error_details(tonic::Code::InvalidArgument, "a: is wrong\nat all", details);
        assert_eq!(explain(&status), "INVALID_ARGUMENT: a: is wrong at all; b: is too [WHY: scope=acme]");
    }

    #[test]
    fn the_token_of_a_data_directory_goes_to_its_own_addresses_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = ClientFile {
            grpc: "127.0.0.1:1".into(),
            http: "127.0.0.1:2".into(),
            token: Some("secret".into()),
            verifier_key: String::new(),
        };
        std::fs::write(directory.path().join(CLIENT_FILE), serde_json::to_vec(&file).unwrap()).unwrap();
        let own = Connection { data: directory.path().to_owned(), grpc: None, http: None, token: None };
        assert_eq!(own.token().unwrap().as_deref(), Some("secret"));
        let other = Connection { grpc: Some("elsewhere:1".into()), ..own };
        assert_eq!(other.token().unwrap(), None);
    }
}

//! From a CloudEvent (1.0) to a report of usage: every attribute and every field of its data checked, the first fault named by its path.
//!
//! Left out: HTTP, and whether tenant, meters and amounts are good, which the report's own checks say. Invariant: the idempotency key is
//! a function of `source` and `id` alone.

use exchequer_event::v1;

use super::json::Json;

/// BLAKE3 `derive_key` context of the idempotency key of a report that came as a CloudEvent.
pub(crate) const CLOUD_EVENT_CONTEXT: &str = "exchequer.v1 cloud event";
/// Longest `id`, `source` and `type`, bytes.
const MAX_ATTRIBUTE_BYTES: usize = 1024;
/// Longest path that a fault tells, characters.
const MAX_PATH_CHARS: usize = 128;

/// A fault, and the path of what has it within the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) field: String,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: shown(field.into()), message: message.into() }
    }
}

/// A path as it is told: names of the event's making are cut.
fn shown(path: String) -> String {
    if path.len() <= MAX_PATH_CHARS { path } else { path.chars().take(MAX_PATH_CHARS).collect() }
}

/// An event, as far as it could be read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Envelope {
    pub(super) source: String,
    pub(super) id: String,
    pub(super) report: Result<v1::ReportUsageRequest, Fault>,
    /// The meters of the report by their names in the event.
    meters: Vec<String>,
}

impl Envelope {
    /// Reads an event in the JSON format.
    pub(super) fn read(event: Json) -> Self {
        let mut envelope = Self {
            source: String::new(),
            id: String::new(),
            report: Err(Fault::new("", "must be an object")),
            meters: Vec::new(),
        };
        if let Json::Object(members) = event {
            envelope.report = envelope.fill(members);
        }
        envelope
    }

    fn fill(&mut self, members: Vec<(String, Json)>) -> Result<v1::ReportUsageRequest, Fault> {
        let mut attributes = Members::new("", members)?;
        // First, so that whatever else is wrong is told of an event that has a name.
        let source = attributes.attribute("source");
        let id = attributes.attribute("id");
        self.source = source.clone().unwrap_or_default();
        self.id = id.clone().unwrap_or_default();
        let (source, id) = (source?, id?);
        if attributes.text("specversion")?.as_deref() != Some("1.0") {
            return Err(Fault::new("specversion", "must be \"1.0\""));
        }
        attributes.attribute("type")?;
        let subject = attributes.text("subject")?;
        let used_unix_ms = match attributes.text("time")? {
            None => 0,
            Some(time) => unix_ms(&time)
                .ok_or_else(|| Fault::new("time", "must be a time as of RFC 3339, not before 1970"))?,
        };
        if let Some(kind) = attributes.text("datacontenttype")?
            && !is_json(&kind)
        {
            return Err(Fault::new("datacontenttype", "must be JSON"));
        }
        if attributes.take("data_base64").is_some() {
            return Err(Fault::new("data_base64", "is not taken; data must be JSON"));
        }
        let Some(Json::Object(data)) = attributes.take("data") else {
            return Err(Fault::new("data", "must be an object"));
        };
        let mut data = Members::new("data.", data)?;
        let scope = data.text("scope")?.ok_or_else(|| data.fault("scope", "is missing"))?;
        let used = match data.take("used") {
            Some(Json::Object(members)) => Members::new("data.used.", members)?.left,
            _ => return Err(Fault::new("data.used", "must be an object")),
        };
        let mut amounts = Vec::with_capacity(used.len());
        for (meter, amount) in used {
            let amount = match amount {
                Json::Number(number) => number.as_u64(),
                _ => None,
            };
            let Some(amount) = amount else {
                return Err(Fault::new(format!("data.used.{meter}"), "must be a whole number, not below 0"));
            };
            self.meters.push(meter.clone());
            amounts.push(v1::MeterAmount { meter, amount });
        }
        let agent_id = data.text("agent")?.unwrap_or_default();
        let skill = data.text("skill")?.unwrap_or_default();
        if let Some((name, _)) = data.left.first() {
            return Err(data.fault(name, "is not a field of usage"));
        }
        Ok(v1::ReportUsageRequest {
            scope,
            used: amounts,
            source: Some(v1::UsageSource { agent_id, skill, execution_id: String::new(), used_unix_ms }),
            subject: subject.unwrap_or_default(),
            idempotency_key: key(&source, &id),
        })
    }

    /// The path in the event of a field of its report.
    pub(super) fn path(&self, field: &str) -> String {
        let named = |rest: &str| {
            let at: usize = rest.split(']').next()?.parse().ok()?;
            self.meters.get(at).map(|meter| format!("data.used.{meter}"))
        };
        match field {
            "scope" => "data.scope".to_owned(),
            "used" => "data.used".to_owned(),
            "subject" => field.to_owned(),
            "source.agent_id" => "data.agent".to_owned(),
            "source.skill" => "data.skill".to_owned(),
            "source.used_unix_ms" => "time".to_owned(),
            _ => shown(field.strip_prefix("used[").and_then(named).unwrap_or_else(|| field.to_owned())),
        }
    }
}

/// Whether a media type says JSON.
pub(super) fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The idempotency key of an event.
fn key(source: &str, id: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(CLOUD_EVENT_CONTEXT);
    for field in [source, id] {
        hasher.update(&(field.len() as u64).to_be_bytes()).update(field.as_bytes());
    }
    format!("ce-{}", hasher.finalize().to_hex())
}

fn unix_ms(time: &str) -> Option<u64> {
    // RFC 3339 wants an offset, which a timestamp in jiff's reading has; more than milliseconds is cut.
    let time: jiff::Timestamp = time.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

/// Members of an object that were not taken yet; no name twice.
struct Members {
    /// What stands before a member's name in its path.
    path: &'static str,
    left: Vec<(String, Json)>,
}

impl Members {
    fn new(path: &'static str, members: Vec<(String, Json)>) -> Result<Self, Fault> {
        let mut names: Vec<_> = members.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Fault::new(format!("{path}{}", pair[0]), "is given twice")),
            None => Ok(Self { path, left: members }),
        }
    }

    /// A member; null is as good as none.
    fn take(&mut self, name: &str) -> Option<Json> {
        let at = self.left.iter().position(|(member, _)| member == name)?;
        Some(self.left.swap_remove(at).1).filter(|value| *value != Json::Null)
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.fault(name, "must be a string")),
        }
    }

    fn fault(&self, name: &str, message: impl Into<String>) -> Fault {
        Fault::new(format!("{}{name}", self.path), message)
    }

    /// An attribute that every event has.
    fn attribute(&mut self, name: &str) -> Result<String, Fault> {
        match self.text(name)? {
            Some(text) if text.is_empty() => Err(self.fault(name, "must not be empty")),
            Some(text) if text.len() > MAX_ATTRIBUTE_BYTES => {
                Err(self.fault(name, format!("is longer than {MAX_ATTRIBUTE_BYTES}")))
            }
            Some(text) => Ok(text),
            None => Err(self.fault(name, "is missing")),
        }
    }
}

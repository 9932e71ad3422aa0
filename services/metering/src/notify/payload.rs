//! What a receiver is told, and the signature over it: docs/protocol.md, "Webhooks".
//!
//! Left out: when and where to. Invariant: the id is the same for each attempt at a notification, by whichever instance; the body is
//! signed as it is sent.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use exchequer_budget::{Reached, Threshold, Window};
use serde::Serialize;

use super::outbox::Origin;

/// The only kind of message.
const KIND: &str = "budget.threshold_reached";

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    partition: u16,
    notification: u64,
    tenant: &'a str,
    scope: &'a str,
    window: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_start_unix_ms: Option<u64>,
    meter: &'a str,
    threshold: Point,
    spent: u64,
    granted: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    forecast: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_unix_ms: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Point {
    SpentPercent(u32),
    SpentAmount(u64),
    ForecastPercent(u32),
}

/// The body that says what was reached.
pub(super) fn body(partition: u16, reached: &Reached, origin: Option<Origin>) -> Bytes {
    let (threshold, forecast) = match reached.threshold {
        Threshold::SpentPercent(percent) => (Point::SpentPercent(percent), None),
        Threshold::SpentAmount(amount) => (Point::SpentAmount(amount), None),
        Threshold::ForecastPercent(percent) => (Point::ForecastPercent(percent), Some(reached.forecast)),
    };
    let data = Data {
        partition,
        notification: reached.notification,
        tenant: reached.scope.tenant(),
        scope: reached.scope.as_str(),
        window: match reached.window {
            Window::AllTime => "lifetime",
            Window::Hour => "hour",
            Window::Day => "day",
            Window::Week => "week",
            Window::Month => "month",
        },
        window_start_unix_ms: (reached.window != Window::AllTime).then_some(reached.window_start_ms),
        meter: reached.meter.name(),
        threshold,
        spent: reached.spent,
        granted: reached.granted,
        forecast,
        stream_seq: origin.map(|origin| origin.stream_seq),
        time_unix_ms: origin.map(|origin| origin.time_ms),
    };
    let body = serde_json::to_vec(&Body { kind: KIND, data });
    body.expect("plain fields have a form in JSON").into()
}

/// Names a notification, the same for each attempt. Without a dot, so that where it ends in what is signed is clear.
pub(super) fn id(partition: u16, number: u64) -> String {
    format!("budget_{partition}_{number}")
}

/// The header `webhook-signature` of Standard Webhooks, asymmetric. What is signed is longer than the 32 bytes that blocks' signatures
/// are over, so that neither can stand for the other.
pub(super) fn signature(key: &SigningKey, id: &str, timestamp: u64, body: &[u8]) -> String {
    let mut signed = format!("{id}.{timestamp}.").into_bytes();
    signed.extend_from_slice(body);
    format!("v1a,{}", STANDARD.encode(key.sign(&signed).to_bytes()))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::Signature;
    use exchequer_budget::{Meter, ScopePath};

    use super::*;

    fn reached(threshold: Threshold) -> Reached {
        Reached {
            scope: ScopePath::parse("acme/chat").unwrap(),
            window: Window::Month,
            meter: Meter::CpuMs,
            window_start_ms: 1_772_319_600_000,
            threshold,
            spent: 80,
            granted: u64::MAX,
            forecast: 120,
            notification: 17,
        }
    }

    #[test]
    fn the_body_says_what_was_reached_and_leaves_out_what_is_not_known() {
        let origin = Some(Origin { stream_seq: 9, time_ms: 8 });
        let full = body(3, &reached(Threshold::ForecastPercent(90)), origin);
        assert_eq!(
            str::from_utf8(&full).unwrap(),
            "{\"type\":\"budget.threshold_reached\",\"data\":{\"partition\":3,\"notification\":17,\"tenant\":\"acme\",\
             \"scope\":\"acme/chat\",\"window\":\"month\",\"window_start_unix_ms\":1772319600000,\"meter\":\"cpu_ms\",\
             \"threshold\":{\"forecast_percent\":90},\"spent\":80,\"granted\":18446744073709551615,\"forecast\":120,\
             \"stream_seq\":9,\"time_unix_ms\":8}}"
        );
        let mut reached = reached(Threshold::SpentAmount(80));
        reached.window = Window::AllTime;
        let least = body(3, &reached, None);
        assert_eq!(
            str::from_utf8(&least).unwrap(),
            "{\"type\":\"budget.threshold_reached\",\"data\":{\"partition\":3,\"notification\":17,\"tenant\":\"acme\",\
             \"scope\":\"acme/chat\",\"window\":\"lifetime\",\"meter\":\"cpu_ms\",\"threshold\":{\"spent_amount\":80},\
             \"spent\":80,\"granted\":18446744073709551615}}"
        );
    }

    #[test]
    fn the_signature_is_over_id_timestamp_and_body() {
        let key = SigningKey::from_bytes(&[5; 32]);
        let header = signature(&key, &id(0, 17), 1_772_319_600, b"{}");
        let bytes = STANDARD.decode(header.strip_prefix("v1a,").unwrap()).unwrap();
        let signature = Signature::from_slice(&bytes).unwrap();
        let signed = b"budget_0_17.1772319600.{}";
        assert!(key.verifying_key().verify_strict(signed, &signature).is_ok());
    }
}

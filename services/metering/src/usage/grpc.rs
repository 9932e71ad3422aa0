//! `QueryUsage`: from the request to a query, and from rows to the answer.
//!
//! Left out: who may ask, which the caller checks first against the request's tenant. Invariant: every fault of the request is reported with
//! its field's path, and what is not known yet is never answered as if it were nothing.

use std::time::Duration;

use exchequer_budget::ScopePath;
use exchequer_event::v1::{self, UsageDimension};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    calendar::{END, Granularity, MILLIS_PER_MINUTE, minute_of, unix_ms},
    page::PageToken,
    projection::{Unanswered, UsageReader},
    query::{Page, Query, QueryError, Row, Step},
    record::{Dimension, is_meter},
};
use crate::ask::{self, Check};

/// Rows per page, unless the caller says otherwise.
const PAGE_SIZE: usize = 1_000;
/// Most rows per page.
const MAX_PAGE_SIZE: u32 = 10_000;
/// When a caller should try again after `UNAVAILABLE`, or when too many ask.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Answers the RPC. `now_unix_ms` ends a range that has no end.
pub(crate) async fn query_usage(
    usage: &UsageReader,
    request: v1::QueryUsageRequest,
    now_unix_ms: u64,
) -> Result<v1::QueryUsageResponse, Status> {
    let asked = Asked::check(&request, now_unix_ms)?;
    let answered = usage.answer(asked.query, asked.as_of).await.map_err(|unanswered| status(&unanswered))?;
    let Page { rows, more } = answered.page;
    let next_page_token = rows.last().filter(|_| more).map_or_else(String::new, |last| {
        PageToken::new(&request, answered.as_of, asked.to, &last.place).text()
    });
    Ok(v1::QueryUsageResponse {
        rows: rows.into_iter().map(row).collect::<Result<_, _>>()?,
        next_page_token,
        log_index: answered.as_of,
        stream_seq: answered.stream_seq,
    })
}

struct Asked {
    query: Query,
    /// `None` for all that is known.
    as_of: Option<u64>,
    to: u32,
}

impl Asked {
    fn check(request: &v1::QueryUsageRequest, now_unix_ms: u64) -> Result<Self, Status> {
        let mut check = Check::default();
        let tenant = check.tenant(&request.tenant);
        let token = match &*request.page_token {
            "" => None,
            text => {
                let token = PageToken::read(text, request);
                if token.is_none() {
                    check.fault("page_token", "is not one that this query gave");
                }
                token
            }
        };
        let dimension = match request.dimension() {
            UsageDimension::Unspecified => Dimension::Scope,
            UsageDimension::Skill => Dimension::Skill,
            UsageDimension::Agent => Dimension::Agent,
        };
        if UsageDimension::try_from(request.dimension).is_err() {
            check.fault("dimension", "is not one that there is");
        }
        let name = match (dimension, &*request.name) {
            (Dimension::Scope, "") => Some(request.tenant.clone()),
            (_, "") => None,
            (Dimension::Scope, name) => {
                let scope = check.take(ScopePath::parse(name).map_err(|fault| fault.at("name")));
                if scope.is_some_and(|scope| scope.tenant() != request.tenant) {
                    check.fault("name", "is not a scope of the tenant");
                }
                Some(name.to_owned())
            }
            (_, name) => Some(name.to_owned()),
        };
        if !request.meter.is_empty() && !is_meter(&request.meter) {
            check.fault("meter", "is not the name of a meter: ^[a-z][a-z0-9_]{0,31}$");
        }
        let step = match (request.step_minutes, request.by_month) {
            (0, true) => Step::Bucket(Granularity::Month),
            (0, false) => Step::Whole,
            (1, false) => Step::Bucket(Granularity::Minute),
            (60, false) => Step::Bucket(Granularity::Hour),
            (1440, false) => Step::Bucket(Granularity::Day),
            (_, true) => {
                check.fault("step_minutes", "is 0 where there is a row per month");
                Step::Whole
            }
            _ => {
                check.fault("step_minutes", "must be 0, 1, 60 or 1440");
                Step::Whole
            }
        };
        let from = minute_of(request.from_unix_ms);
        let to_unix_ms = if request.to_unix_ms == 0 { now_unix_ms } else { request.to_unix_ms };
        let to = token.as_ref().map_or_else(|| minute_after(to_unix_ms), |token| token.to.min(END));
        if from >= to {
            check.fault("to_unix_ms", "is not after from_unix_ms");
        }
        check.refusal()?;
        let page_size = match request.page_size {
            0 => PAGE_SIZE,
            size @ 1..=MAX_PAGE_SIZE => usize::try_from(size).unwrap_or(PAGE_SIZE),
            _ => return Err(ask::out_of_range("page_size", "must be 0 to 10000")),
        };
        let tenant = tenant.map(|tenant| tenant.as_str().to_owned()).unwrap_or_default();
        let meter = (!request.meter.is_empty()).then(|| request.meter.clone());
        let as_of = token.as_ref().map(|token| token.as_of);
        let as_of = as_of.or((request.as_of_index > 0).then_some(request.as_of_index));
        // A place before the range is none that this query gave; the range's own bounds hold in any case.
        let after = token.map(|token| token.place()).filter(|place| (from..to).contains(&place.from));
        // The reader puts in the index that is known where none is asked for.
        let query = Query { tenant, dimension, name, meter, from, to, step, as_of: 0, page_size, after };
        Ok(Self { query, as_of, to })
    }
}

/// The first minute that begins at a time or after it.
fn minute_after(unix_ms: u64) -> u32 {
    u32::try_from(unix_ms.div_ceil(MILLIS_PER_MINUTE)).map_or(END, |minute| minute.min(END))
}

fn row(row: Row) -> Result<v1::UsageRow, Status> {
    let Row { place, to, tally, unique } = row;
    let sum = i64::try_from(tally.sum).map_err(|_| {
        Status::out_of_range(format!("the sum of {} of {} is beyond 2^63", place.meter, place.name))
    })?;
    Ok(v1::UsageRow {
        name: place.name,
        meter: place.meter,
        from_unix_ms: unix_ms(place.from),
        to_unix_ms: unix_ms(to),
        sum,
        count: tally.count,
        max: tally.max,
        unique_subjects: unique,
    })
}

fn status(unanswered: &Unanswered) -> Status {
    let text = unanswered.to_string();
    match unanswered {
        Unanswered::Query(QueryError::TooMuch) => {
            let details = ErrorDetails::with_quota_failure_violation("rows read by one call", &*text);
            Status::with_error_details(Code::ResourceExhausted, text, details)
        }
        Unanswered::Busy => {
            let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            Status::with_error_details(Code::ResourceExhausted, text, details)
        }
        Unanswered::Behind { .. } | Unanswered::NotReady(_) | Unanswered::Query(QueryError::Store(_)) => {
            let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            Status::with_error_details(Code::Unavailable, text, details)
        }
    }
}

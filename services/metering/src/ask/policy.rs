//! What a tenant can set, and what usage belongs to: from messages to terms.
//!
//! Left out: what a field may be by itself, which [`exchequer_budget::wire`] says. Invariant: paths are those of the request, from its
//! outermost message on.

use std::sync::Arc;

use exchequer_budget::{
    BudgetTerms, Correction, Fault, GrantId, GrantTerms, Invalid, Label, Meter, Price, RateLimit, ScopePath,
    Source, WebhookUrl, Window, wire,
};
use exchequer_event::{name, v1};

use super::Check;

impl Check {
    /// The part of a request that it is about.
    fn part<M, T>(
        &mut self,
        field: &str,
        part: Option<&M>,
        read: impl FnOnce(&M) -> Result<T, Invalid>,
    ) -> Option<T> {
        let part = part.ok_or_else(|| Fault::Missing.at(field));
        self.take(part.and_then(|part| read(part).map_err(|invalid| invalid.within(field))))
    }

    pub(crate) fn grant_id(&mut self, text: &str) -> Option<GrantId> {
        self.take(GrantId::parse(text).map_err(|fault| fault.at("grant_id")))
    }

    pub(crate) fn label(&mut self, field: &str, text: &str) -> Option<Label> {
        self.take(Label::parse(text).map_err(|fault| fault.at(field)))
    }

    /// A text, or none where none is given.
    pub(crate) fn optional_label(&mut self, field: &str, text: &str) -> Option<Label> {
        self.take(Label::optional(text).map_err(|fault| fault.at(field))).flatten()
    }

    pub(crate) fn window(&mut self, number: i32) -> Option<Window> {
        self.take(wire::window("window", number))
    }

    pub(crate) fn meters(&mut self, names: &[String]) -> Option<Vec<Meter>> {
        self.take(wire::meters("meters", names))
    }

    pub(crate) fn budget_terms(&mut self, asked: &v1::SetBudgetRequest) -> Option<BudgetTerms> {
        self.take(wire::budget_terms(asked))
    }

    pub(crate) fn grant(&mut self, asked: Option<&v1::GrantAdded>) -> Option<GrantTerms> {
        self.part("grant", asked, wire::grant)
    }

    pub(crate) fn rate_limit(&mut self, asked: Option<&v1::RateLimitSet>) -> Option<RateLimit> {
        self.part("limit", asked, wire::rate_limit)
    }

    pub(crate) fn concurrency_limit(
        &mut self,
        asked: Option<&v1::ConcurrencyLimitSet>,
    ) -> Option<(ScopePath, u64)> {
        self.part("limit", asked, wire::concurrency_limit)
    }

    pub(crate) fn price(&mut self, asked: Option<&v1::PriceSet>) -> Option<Price> {
        self.part("price", asked, wire::price)
    }

    pub(crate) fn meter_definition(
        &mut self,
        asked: Option<&v1::MeterDefined>,
    ) -> Option<(Meter, Option<Label>)> {
        self.part("meter", asked, wire::meter_definition)
    }

    /// An http or https URL without a user or password, which would be in the log for everybody to read; or none.
    pub(crate) fn webhook(&mut self, asked: Option<&v1::WebhookSet>) -> Option<WebhookUrl> {
        let url = self.part("webhook", asked, |asked| wire::webhook(&asked.url))??;
        let (_, rest) = url.as_str().split_once("://").unwrap_or_default();
        if rest.split(['/', '?', '#', '\\']).next().is_some_and(|authority| authority.contains('@')) {
            self.fault("webhook.url", "must not hold a user or password: it is recorded");
        }
        Some(url)
    }

    pub(crate) fn correction(&mut self, asked: Option<&v1::UsageCorrected>) -> Option<Correction> {
        let correction = self.part("correction", asked, wire::correction);
        self.names("correction.source", asked.and_then(|asked| asked.source.as_ref()));
        correction
    }

    /// What usage belongs to; nothing, where nothing is said.
    pub(crate) fn source(&mut self, asked: Option<&v1::UsageSource>) -> Source {
        let source = self.take(wire::source("source", asked)).flatten();
        self.names("source", asked);
        source.map(Arc::unwrap_or_clone).unwrap_or_default()
    }

    /// Agents, skills and executions are named as they are in events, so that usage of both kinds adds up.
    fn names(&mut self, field: &str, source: Option<&v1::UsageSource>) {
        let Some(source) = source else { return };
        let parts = [
            ("agent_id", source.agent_id.is_empty() || name::is_holder(&source.agent_id)),
            ("skill", source.skill.is_empty() || name::is_skill(&source.skill)),
            ("execution_id", source.execution_id.is_empty() || name::is_uuid(&source.execution_id)),
        ];
        for (part, _) in parts.into_iter().filter(|(_, is_good)| !is_good) {
            self.fault(&format!("{field}.{part}"), "is not well formed");
        }
    }
}

//! Who asks, under what name it acts, and what it may do to holds.
//!
//! Left out: how the caller was found out, and the rights that are the same everywhere ([`exchequer_auth`]). Invariant: nobody but an
//! agent goes by an agent id.

use exchequer_auth::{Caller, Role};
use exchequer_budget::{Label, Source, Subject, TenantId};
use exchequer_event::name;
use tonic::{Code, Request, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A caller, and the name under which it acts.
#[derive(Debug)]
pub(super) struct Who {
    pub(super) caller: Caller,
    actor: Result<Subject, Status>,
}

impl Who {
    /// Takes a request apart.
    pub(super) fn open<T>(request: Request<T>) -> Result<(Self, T), Status> {
        let (_, mut extensions, message) = request.into_parts();
        Caller::of(&extensions).map_err(Status::from)?;
        let caller = extensions.remove::<Caller>().ok_or_else(|| Status::unauthenticated("no caller"))?;
        Ok((Self::new(caller), message))
    }

    pub(super) fn new(caller: Caller) -> Self {
        Self { actor: actor(&caller), caller }
    }

    /// Under what name the caller acts and holds.
    pub(super) fn actor(&self) -> Result<&Subject, Status> {
        self.actor.as_ref().map_err(Clone::clone)
    }

    /// Whether the caller may reserve for this tenant, and act on holds of its own there.
    pub(super) fn may_reserve(&self, tenant: &str) -> Result<(), Status> {
        match self.caller.may_hold() {
            Ok(()) => Ok(()),
            Err(denied) if self.caller.has(Role::TenantAdmin) => {
                self.caller.may_set_budget(tenant).map_err(|_| Status::from(denied))
            }
            Err(_) => Err(Status::permission_denied("this needs the role agent, admin or tenant-admin")),
        }
    }

    /// Whether any hold could be the caller's; so that the others learn nothing by asking.
    pub(super) fn may_hold_somewhere(&self) -> Result<(), Status> {
        if [Role::Agent, Role::Admin, Role::TenantAdmin].into_iter().any(|role| self.caller.has(role)) {
            Ok(())
        } else {
            Err(Status::permission_denied("this needs the role agent, admin or tenant-admin"))
        }
    }

    /// Whether the caller sets budgets of any tenant; so that the others learn nothing by asking.
    pub(super) fn may_administer_somewhere(&self) -> Result<(), Status> {
        if [Role::Admin, Role::TenantAdmin].into_iter().any(|role| self.caller.has(role)) {
            Ok(())
        } else {
            Err(Status::permission_denied("this needs the role tenant-admin or admin"))
        }
    }

    /// What usage belongs to, with the agent that says so in it. An agent can name no other.
    pub(super) fn source(&self, mut source: Source) -> Result<Source, Status> {
        let is_agent = self.actor.as_ref().is_ok_and(|actor| actor.as_str() == self.caller.subject);
        if !is_agent {
            return Ok(source);
        }
        match &source.agent_id {
            Some(named) if named.as_str() != self.caller.subject => {
                let fault = "can be no other agent than the caller";
                let details = ErrorDetails::with_bad_request_violation("source.agent_id", fault);
                let text = format!("source.agent_id {fault}");
                Err(Status::with_error_details(Code::PermissionDenied, text, details))
            }
            _ => {
                source.agent_id = Label::parse(&self.caller.subject).ok();
                Ok(source)
            }
        }
    }

    /// Whether the caller's role spans tenants.
    pub(super) fn spans_tenants(&self) -> bool {
        self.caller.may_hold().is_ok() || self.caller.may_read_all().is_ok()
    }

    /// The tenant that the caller belongs to.
    pub(super) fn own_tenant(&self) -> Option<TenantId> {
        TenantId::parse(self.caller.tenant.as_deref()?).ok()
    }

    /// The tenant that a request means, as far as is known before it is checked; empty for all.
    pub(super) fn tenant_of<T>(request: &Request<T>, named: &str) -> Result<String, Status> {
        let caller = Caller::of(request.extensions()).map_err(Status::from)?;
        let own = if caller.may_read_all().is_ok() { None } else { caller.tenant.as_deref() };
        Ok(if named.is_empty() { own.unwrap_or_default() } else { named }.to_owned())
    }

    /// The tenant that a request means: the one that it names, or the caller's own; none for all of them.
    pub(super) fn tenant(&self, named: &str) -> Result<Option<String>, Status> {
        match (named, &self.caller.tenant) {
            ("", _) if self.caller.may_read_all().is_ok() => Ok(None),
            ("", Some(own)) => Ok(Some(own.clone())),
            ("", None) => {
                Err(Status::permission_denied("the caller belongs to no tenant and may not read all of them"))
            }
            (named, _) => Ok(Some(named.to_owned())),
        }
    }
}

/// An agent goes by its id, as in its recorded executions; anybody else by role and subject, which no agent id can equal: whoever may
/// choose the subjects of a tenant's tokens can't take over an agent's holds.
fn actor(caller: &Caller) -> Result<Subject, Status> {
    let unusable = |fault| Status::permission_denied(format!("the token's subject {fault}"));
    if caller.has(Role::Agent) && name::is_holder(&caller.subject) {
        return Subject::parse(&caller.subject).map_err(unusable);
    }
    let role = [Role::Admin, Role::TenantAdmin, Role::User].into_iter().find(|role| caller.has(*role));
    let role = role.ok_or_else(|| {
        Status::permission_denied("the token's subject is no agent id: ^[a-z0-9][a-z0-9_-]{0,62}$")
    })?;
    Subject::parse(&format!("{}:{}", role.name(), caller.subject)).map_err(unusable)
}

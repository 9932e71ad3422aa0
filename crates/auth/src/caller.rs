//! Who calls, and what they may do.
//!
//! Left out: how the caller was found out ([`crate::Verifier`]) and what a tenant's data is (the services).
//! Invariant: every `may_*` names the role it grants by; a role that is not named grants nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use axum::response::{IntoResponse, Response};
use http::{Extensions, HeaderValue, StatusCode, header};
use tonic::Status;

use crate::verify::TokenError;

/// What a caller was made for. Roles don't imply each other; a token lists all that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Executes for its own tenant, and reads what belongs to it.
    User,
    /// Sets the budgets of its own tenant, and reads what belongs to it.
    TenantAdmin,
    /// The service identity of a worker host: submits batches as its own subject; reserves and settles for any tenant.
    Agent,
    /// Reads the entries of every tenant; changes nothing.
    Auditor,
    /// Administers keys and enrolment, and acts for any tenant.
    Admin,
}

impl Role {
    /// Every role, in ascending order of power.
    pub const ALL: [Self; 5] = [Self::User, Self::TenantAdmin, Self::Agent, Self::Auditor, Self::Admin];

    /// The role's name in the `roles` claim.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::TenantAdmin => "tenant-admin",
            Self::Agent => "agent",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let role = Self::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or_else(|| format!("unknown role; expected one of {}", names()))
    }
}

/// A verified caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The `sub` claim; for an agent, its agent id.
    pub subject: String,
    /// The tenant the caller belongs to, if to any.
    pub tenant: Option<String>,
    /// The known roles of the token.
    pub roles: BTreeSet<Role>,
}

impl Caller {
    /// A caller as a token would describe it.
    pub fn new(
        subject: impl Into<String>,
        tenant: Option<&str>,
        roles: impl IntoIterator<Item = Role>,
    ) -> Self {
        Self {
            subject: subject.into(),
            tenant: tenant.map(str::to_owned),
            roles: roles.into_iter().collect(),
        }
    }

    /// The caller that [`crate::AuthLayer`] put into a request's extensions, tonic's or http's. Without one (a
    /// public path) the request is unauthenticated.
    pub fn of(extensions: &Extensions) -> Result<&Self, TokenError> {
        extensions.get::<Self>().ok_or(TokenError::Missing)
    }

    /// Whether the token named this role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Refuses a caller without `role`.
    pub fn require_role(&self, role: Role) -> Result<(), Denied> {
        if self.has(role) { Ok(()) } else { Err(Denied::Role { needed: role.name() }) }
    }

    /// Execute for `tenant`: a user of that tenant, or an admin.
    pub fn may_execute(&self, tenant: &str) -> Result<(), Denied> {
        self.own_tenant(tenant, &[Role::User], &[Role::Admin], "user")
    }

    /// Read what belongs to `tenant` (entries, usage, budgets): its users and tenant admins, auditors, admins.
    pub fn may_read_tenant(&self, tenant: &str) -> Result<(), Denied> {
        let own = [Role::User, Role::TenantAdmin];
        self.own_tenant(tenant, &own, &[Role::Auditor, Role::Admin], "user, tenant-admin or auditor")
    }

    /// Read what belongs to no single tenant (control records, other hosts' seals): auditors and admins.
    pub fn may_read_all(&self) -> Result<(), Denied> {
        self.any_of(&[Role::Auditor, Role::Admin], "auditor or admin")
    }

    /// Set budgets of `tenant`: its tenant admins, or an admin.
    pub fn may_set_budget(&self, tenant: &str) -> Result<(), Denied> {
        self.own_tenant(tenant, &[Role::TenantAdmin], &[Role::Admin], "tenant-admin")
    }

    /// Reserve, extend, settle or void holds, for any tenant: agents and admins.
    pub fn may_hold(&self) -> Result<(), Denied> {
        self.any_of(&[Role::Agent, Role::Admin], "agent or admin")
    }

    /// Submit batches as `agent_id`: only an agent whose subject it is. Not even an admin may, since a batch is one
    /// host's word.
    pub fn may_submit_as(&self, agent_id: &str) -> Result<(), Denied> {
        self.require_role(Role::Agent)?;
        if self.subject == agent_id { Ok(()) } else { Err(Denied::Subject { wanted: agent_id.to_owned() }) }
    }

    /// Administer keys, enrolment and revocation: admins.
    pub fn may_administer(&self) -> Result<(), Denied> {
        self.require_role(Role::Admin)
    }

    fn any_of(&self, roles: &[Role], needed: &'static str) -> Result<(), Denied> {
        if roles.iter().any(|role| self.has(*role)) { Ok(()) } else { Err(Denied::Role { needed }) }
    }

    fn own_tenant(
        &self,
        tenant: &str,
        own: &[Role],
        any: &[Role],
        needed: &'static str,
    ) -> Result<(), Denied> {
        if any.iter().any(|role| self.has(*role)) {
            return Ok(());
        }
        self.any_of(own, needed)?;
        if self.tenant.as_deref() == Some(tenant) {
            Ok(())
        } else {
            Err(Denied::Tenant { wanted: tenant.to_owned() })
        }
    }
}

/// A verified caller asked for what it may not do. `PERMISSION_DENIED`, or HTTP 403.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// None of the caller's roles allows this.
    #[error("this needs the role {needed}")]
    Role {
        /// The role or roles that would do.
        needed: &'static str,
    },
    /// The role would do, but for the caller's own tenant only.
    #[error("this caller may not act for tenant `{wanted}`")]
    Tenant {
        /// The tenant that was asked for.
        wanted: String,
    },
    /// The role would do, but for the caller's own subject only.
    #[error("this caller may not act as `{wanted}`")]
    Subject {
        /// The subject that was asked for.
        wanted: String,
    },
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        Self::permission_denied(denied.to_string())
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let mut response = (StatusCode::FORBIDDEN, self.to_string()).into_response();
        let challenge = HeaderValue::from_static("Bearer realm=\"exchequer\", error=\"insufficient_scope\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        response
    }
}

impl<S: Sync> axum::extract::FromRequestParts<S> for Caller {
    type Rejection = TokenError;

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        _state: &S,
    ) -> Result<Self, Self::Rejection> {
        Self::of(&parts.extensions).cloned()
    }
}

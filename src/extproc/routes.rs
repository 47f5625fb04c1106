//! Finds the policy of a request by its route.

use std::collections::HashMap;
use std::sync::Arc;

use super::codec::convert::RouteAttributes;
use super::route_metadata;
use crate::policy::{BypassReason, Policy};

/// All policies, and which one each route means.
#[derive(Debug)]
pub struct Routes {
    policies: HashMap<Arc<str>, Arc<Policy>>,
    by_route_name: HashMap<String, Arc<Policy>>,
    default: Option<Arc<Policy>>,
    no_policy: Arc<str>,
}

impl Routes {
    /// Makes the table. `by_route_name` maps Envoy's route names; `default` is for routes that name
    /// no policy.
    pub fn new(
        policies: impl IntoIterator<Item = Arc<Policy>>,
        by_route_name: HashMap<String, Arc<Policy>>,
        default: Option<Arc<Policy>>,
    ) -> Self {
        Self {
            policies: policies
                .into_iter()
                .map(|policy| (Arc::clone(&policy.name), policy))
                .collect(),
            by_route_name,
            default,
            no_policy: "none".into(),
        }
    }

    /// The label of requests without a policy.
    pub(super) fn no_policy(&self) -> &Arc<str> {
        &self.no_policy
    }

    /// Finds the policy of a request. The first of these that names one decides: the stream's
    /// metadata (`named`), the route's metadata, the route's name, the default. The name `bypass`
    /// stands for no policy.
    pub(super) fn policy(
        &self,
        named: Option<&str>,
        route: &RouteAttributes,
    ) -> Result<Arc<Policy>, BypassReason> {
        if let Some(name) = named {
            return self.by_name(name);
        }
        if let Some(text) = &route.metadata {
            let named =
                route_metadata::policy_name(text).map_err(|_| BypassReason::RouteMetadata)?;
            if let Some(name) = named {
                return self.by_name(&name);
            }
        }
        route
            .name
            .as_ref()
            .and_then(|name| self.by_route_name.get(name))
            .or(self.default.as_ref())
            .cloned()
            .ok_or(BypassReason::NoPolicy)
    }

    fn by_name(&self, name: &str) -> Result<Arc<Policy>, BypassReason> {
        match self.policies.get(name) {
            Some(policy) => Ok(Arc::clone(policy)),
            None if name == "bypass" => Err(BypassReason::NoPolicy),
            None => Err(BypassReason::UnknownPolicy),
        }
    }
}

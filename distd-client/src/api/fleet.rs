//! Requests about labels, groups and grants.

use distd_core::api::{
    AuditPage, ChangeLabels, FleetNode, FleetPage, FleetStatus, GrantList, GroupList, GroupMembers,
    GroupSelection, NewGrants, NewGroup, NodeDetail, NodeLabels, Pin, ReceiptsHead, ReceiptsPage,
};
use reqwest::Method;

use super::{ANSWER, Api, ApiError, Query};

impl Api {
    /// Returns one node with its groups and grants.
    pub async fn node(&self, id: &str) -> Result<NodeDetail, ApiError> {
        self.get(&["v1", "nodes", id]).await
    }

    /// Returns sums over the fleet; `query` says over which devices.
    pub async fn fleet_status(&self, query: &Query) -> Result<FleetStatus, ApiError> {
        self.send_json(self.asked(&["v1", "fleet"], query)).await
    }

    /// Returns a page of the fleet's devices; `query` says which.
    pub async fn fleet_devices(&self, query: &Query) -> Result<FleetPage, ApiError> {
        self.send_json(self.asked(&["v1", "fleet", "nodes"], query)).await
    }

    /// Returns everything that is known about one node.
    pub async fn fleet_node(&self, id: &str) -> Result<FleetNode, ApiError> {
        self.get(&["v1", "fleet", "nodes", id]).await
    }

    /// Returns a page of the audit log.
    pub async fn audit(&self, query: &Query) -> Result<AuditPage, ApiError> {
        self.send_json(self.asked(&["v1", "audit"], query)).await
    }

    /// Returns the newest head of the log of receipts.
    pub async fn receipts_head(&self) -> Result<ReceiptsHead, ApiError> {
        self.get(&["v1", "receipts", "head"]).await
    }

    /// Returns a page of the log of receipts.
    pub async fn receipts(&self, query: &Query) -> Result<ReceiptsPage, ApiError> {
        self.send_json(self.asked(&["v1", "receipts", "entries"], query)).await
    }

    /// Changes the labels that an operator gave a node; returns all its labels.
    pub async fn label_node(&self, id: &str, change: &ChangeLabels) -> Result<NodeLabels, ApiError> {
        self.with_body(Method::POST, &["v1", "nodes", id, "labels"], change).await
    }

    /// Pins a node to a version of a product.
    pub async fn pin_node(&self, id: &str, product: &str, version: &str) -> Result<(), ApiError> {
        let request = self.request(Method::PUT, &["v1", "nodes", id, "pins", product]).timeout(ANSWER);
        self.send(request.json(&Pin { version: version.to_owned() })).await.map(drop)
    }

    /// Removes the pin of a node to a version of a product.
    pub async fn unpin_node(&self, id: &str, product: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "nodes", id, "pins", product]).await
    }

    /// Returns the groups.
    pub async fn groups(&self) -> Result<GroupList, ApiError> {
        self.get(&["v1", "groups"]).await
    }

    /// Returns a group with at most `limit` members whose ids are greater than `after`.
    pub async fn group(&self, name: &str, after: Option<&str>, limit: u32) -> Result<GroupMembers, ApiError> {
        let mut query = format!("limit={limit}");
        if let Some(after) = after {
            query.push_str(&format!("&after={after}"));
        }
        let path = ["v1", "groups", name];
        self.send_json(self.request_with(Method::GET, &path, Some(&query)).timeout(ANSWER)).await
    }

    /// Makes a group, or gives it another definition.
    pub async fn put_group(&self, name: &str, group: &NewGroup) -> Result<GroupSelection, ApiError> {
        self.with_body(Method::PUT, &["v1", "groups", name], group).await
    }

    /// Removes a group.
    pub async fn remove_group(&self, name: &str) -> Result<(), ApiError> {
        self.delete(&["v1", "groups", name]).await
    }

    /// Returns the grants.
    pub async fn grants(&self) -> Result<GrantList, ApiError> {
        self.get(&["v1", "grants"]).await
    }

    /// Makes grants to one group.
    pub async fn add_grants(&self, grants: &NewGrants) -> Result<GrantList, ApiError> {
        self.with_body(Method::POST, &["v1", "grants"], grants).await
    }

    /// Removes a grant.
    pub async fn remove_grant(&self, id: u64) -> Result<(), ApiError> {
        self.delete(&["v1", "grants", &id.to_string()]).await
    }
}

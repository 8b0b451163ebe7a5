//! Space of an origin: nothing that a release, an open upload or a pull in flight needs is ever
//! gone, whatever happens in whatever order and wherever a process ends; and space comes back.

#[path = "space/kills.rs"]
mod kills;
#[path = "space/model.rs"]
mod model;
#[path = "space/site.rs"]
mod site;

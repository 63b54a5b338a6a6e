//! Whether the flips are quick enough to win a race, and what is compared would show it.

use std::time::Duration;

use crate::common::setup;
use crate::flips::{Flipper, Seen, perl, start};

#[test]
fn root_of_the_host_who_looks_first_and_acts_then_is_led_astray() {
    lab::require_root!();
    let host = start(setup(""), "mkdir /home/alice/inbox; chown alice: /home/alice/inbox");
    let before = Seen::of(&host, &[]);
    let places = ["/home/alice/inbox=/srv/secret".to_owned()];
    let flipper = Flipper::start(host.ssh("alice", &perl(&places)), &places);
    let careless = "until [ -e /srv/secret/made ]; do
        if [ -d /home/alice/inbox ] && ! [ -L /home/alice/inbox ]; then > /home/alice/inbox/made; fi; done";
    host.root(careless).within(Duration::from_secs(60)).ok();
    flipper.end();
    let after = Seen::of(&host, &[]);
    assert!(!before.differences(&after).is_empty());
}

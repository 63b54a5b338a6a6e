//! A private network where AppArmor confines pasta, as it does on any Debian.

use crate::MACHINE;

#[test]
fn a_private_network_works_under_the_profile_that_debian_has_for_pasta() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    assert_eq!(machine.root("cat /sys/module/apparmor/parameters/enabled").text(), "Y");
    let profiles = machine.root("cat /sys/kernel/security/apparmor/profiles").text();
    assert!(profiles.contains("passt (enforce)") || profiles.contains("pasta (enforce)"), "{profiles}");

    let inside =
        machine.ssh("paula", "cat /proc/1/comm; ls /sys/class/net; cat /proc/net/route | cut -f1-3").text();

    assert!(inside.starts_with("ojail-init\neth0\nlo\n"), "{inside}");
    // QEMU's gateway, 10.0.2.2, in the kernel's way of writing.
    assert!(inside.contains("eth0\t00000000\t0202000A"), "{inside}");
    let pasta = machine.root("cat /proc/$(pgrep -x 'pasta|pasta.avx2|passt|passt.avx2')/attr/current").text();
    assert!(pasta.contains("(enforce)"), "{pasta}");
}

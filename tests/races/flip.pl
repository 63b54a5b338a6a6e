# Flips each PLACE against a symbolic link to TARGET, as fast as it can, until it is killed (CVE-2025-6020).
# Arguments: PLACE=TARGET..., or PLACE=+OTHER for the exchange of two things that are there. Run by tests/races, by a user or root of a jail or by a user of the host.
# Prints which places cannot be flipped, then "flipping N" with the number of those that can, then how many flips were done.
use strict;
use POSIX ();

my $number = (POSIX::uname())[4] eq 'x86_64' ? 316 : 276;    # renameat2(2)
my $exchange = 2;
my @pairs;

sub flip {
    my ($one, $other) = @_;
    return syscall($number, -100, $one, -100, $other, $exchange) == 0;
}

$| = 1;
for (@ARGV) {
    my ($place, $target) = split /=/;
    my $other = "$place.flip";
    if ($target =~ s/^\+//) { $other = $target }
    else { unlink $other; symlink $target, $other or print "no link $other: $!\n" }
    if (flip($place, $other) && flip($place, $other)) { push @pairs, [$place, $other] }
    else { print "cannot flip $place: $!\n" }
}
print "flipping ", scalar @pairs, "\n";
exit 1 unless @pairs;
my $flips = 0;
while (1) {
    # One at a time, and back in the end: whoever finds the first thing in order goes on to the next. Now and then, all together.
    my @some = rand() < 0.1 ? @pairs : $pairs[rand @pairs];
    for (1 .. 200 / @some) {
        for (1 .. 2) {
            for (@some) { $flips += flip(@$_) }
            # Longer in one state now and then, so that whatever needs two steps meets it too.
            select undef, undef, undef, rand 0.002 if rand() < 0.05;
        }
    }
    print "$flips\n";
}
__END__

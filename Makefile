# Build, install, show, test and measure ojail. `make help` lists the targets.

PREFIX  ?= /usr
DESTDIR ?=
CARGO   ?= cargo
TARGET  := $(or $(CARGO_TARGET_DIR),target)
HOST    := $(shell rustc -vV | sed -n 's/^host: //p')
ARCH    := $(shell gcc -print-multiarch 2>/dev/null || echo $(subst -unknown,,$(HOST)))
PAMDIR  := $(DESTDIR)$(or $(SECUREDIR),/usr/lib/$(ARCH)/security)
STATIC  := $(TARGET)/static/$(HOST)/release
MANUAL  := $(TARGET)/release
UNITDIR ?= /usr/lib/systemd/system
UNITS   := $(notdir $(wildcard conf/systemd/*))
# Where zsh of Debian looks, below /usr and below /usr/local.
ZSH     := zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)
# What is installed below $(PREFIX)/share, from where: the hand-written pages, and what `make build` made.
PAGES   := $(wildcard conf/man/*.[58]) $(MANUAL)/man/ojail.8
SHARE   := $(foreach page,$(PAGES),man/man$(subst .,,$(suffix $(page)))/$(notdir $(page)):$(page)) \
           bash-completion/completions/ojail:$(MANUAL)/completions/ojail \
           $(ZSH)/_ojail:$(MANUAL)/completions/_ojail \
           fish/vendor_completions.d/ojail.fish:$(MANUAL)/completions/ojail.fish

.PHONY: help build programs manual deb test attack lint needs root install uninstall demo bench

help:
	@sed -n 's/^## //p' Makefile

## make build      the programs, optimised: ojail, pam_ojail.so, and static ojail-init, ojail-shell and ojail-probe; and the manual
build: needs programs manual

# The last three are static, and at a fixed address: PID 1 of a jail then has no relocations of its own to keep in memory.
# With --target the flags do not reach build scripts and procedural macros, which cannot be static.
programs: export OJAIL_PREFIX := $(PREFIX)
programs:
	$(CARGO) build --release --locked -p ojail
	$(CARGO) build --release --locked -p pam_ojail
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
	  $(CARGO) build --release --locked -p ojail-shell --target $(HOST) --target-dir $(TARGET)/static
	@echo '$(PREFIX)' > $(TARGET)/release/ojail.prefix

# ojail(8) and the completions, from the definition of the flags. Not optimised: what makes them runs for a moment.
manual:
	$(CARGO) run --locked --quiet -p manual -- conf/man/ojail.8.in $(PREFIX)/sbin/ojail $(MANUAL)

## make deb        the Debian package, in target/debian
deb: needs
	rm -rf $(TARGET)/debian && mkdir -p $(TARGET)/debian
	OJAIL_DEBS=$(abspath $(TARGET)/debian) dpkg-buildpackage -us -uc -b \
	  --buildinfo-option=-u$(TARGET)/debian --buildinfo-file=$(TARGET)/debian/ojail.buildinfo \
	  --changes-option=-u$(TARGET)/debian --changes-file=$(TARGET)/debian/ojail.changes
	debian/rules clean >/dev/null

## make demo       what ojail is, over a real sshd in a throw-away host (as root)
demo: root build
	@$(CARGO) run --release --locked --quiet -p lab --bin demo

## make bench      what it costs, as a table (as root)
bench: root build
	@$(CARGO) build --release --locked --quiet -p lab --bins
	@$(TARGET)/release/bench

# Tests wait, too: one more of them at once than there are processors.
export RUST_TEST_THREADS ?= $(shell echo $$(($$(nproc) + 1)))

## make test       unit tests; as root also the integration tests, in throw-away hosts (needs root for those)
test: needs build deb
	$(CARGO) test --locked --workspace

## make attack     attacks jails from inside, and says what was reached, if anything was (as root)
attack: root build
	$(CARGO) test --locked --test attack

## make lint       formatting, lints, and the documentation's links
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --quiet --workspace --no-deps --document-private-items

# Before the build, after which it would be told too late.
root:
	@[ "$$(id -u)" = 0 ] || { echo "make attack, demo and bench need root: they start throw-away hosts." >&2; exit 1; }

# Debian packages that building and testing need; asks apt-get only if something is missing.
needs:
	@if [ "$$(id -u)" = 0 ]; then sh tests/lab/install-needs; fi

## make install    into DESTDIR, below PREFIX (default /usr; the same as for `make build`); keeps an existing ojail.toml
install:
	@[ "$$(cat $(TARGET)/release/ojail.prefix 2>/dev/null)" = '$(PREFIX)' ] || \
	  { echo "make install: not built for PREFIX=$(PREFIX); run 'make build PREFIX=$(PREFIX)' first" >&2; exit 1; }
	install -D -m 0755 $(TARGET)/release/ojail $(DESTDIR)$(PREFIX)/sbin/ojail
	install -D -m 0755 $(STATIC)/ojail-init $(DESTDIR)$(PREFIX)/libexec/ojail/ojail-init
	install -D -m 0755 $(STATIC)/ojail-probe $(DESTDIR)$(PREFIX)/libexec/ojail/ojail-probe
	install -D -m 0755 conf/policy-rc.d $(DESTDIR)$(PREFIX)/libexec/ojail/policy-rc.d
	install -D -m 0755 $(STATIC)/ojail-shell $(DESTDIR)$(PREFIX)/bin/ojail-shell
	install -D -m 0644 $(TARGET)/release/libpam_ojail.so $(PAMDIR)/pam_ojail.so
	install -D -m 0644 conf/pam-configs/ojail $(DESTDIR)/usr/share/pam-configs/ojail
	install -D -m 0644 conf/tmpfiles.d/ojail.conf $(DESTDIR)/usr/lib/tmpfiles.d/ojail.conf
	install -d -m 0755 $(DESTDIR)$(UNITDIR)
	set -e; for unit in $(UNITS); do \
	  sed 's|/usr/sbin/|$(PREFIX)/sbin/|' conf/systemd/$$unit > $(DESTDIR)$(UNITDIR)/$$unit; \
	  chmod 0644 $(DESTDIR)$(UNITDIR)/$$unit; done
	set -e; for file in $(SHARE); do install -D -m 0644 "$${file#*:}" "$(DESTDIR)$(PREFIX)/share/$${file%%:*}"; done
	[ -e $(DESTDIR)/etc/ojail/ojail.toml ] || install -D -m 0644 conf/ojail.toml $(DESTDIR)/etc/ojail/ojail.toml

## make uninstall  removes what `make install` put there; configuration, layers and uppers stay
uninstall:
	@! grep -ls pam_ojail $(DESTDIR)/etc/pam.d/* || \
	  { echo "make uninstall: these files name pam_ojail; without the module nobody could log in, not even root." >&2; \
	    echo "Run 'pam-auth-update --disable ojail', or take the line out of them, first." >&2; exit 1; }
	rm -f $(DESTDIR)$(PREFIX)/sbin/ojail $(DESTDIR)$(PREFIX)/bin/ojail-shell $(PAMDIR)/pam_ojail.so
	rm -f $(DESTDIR)/usr/share/pam-configs/ojail $(DESTDIR)/usr/lib/tmpfiles.d/ojail.conf
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	for file in $(SHARE); do rm -f "$(DESTDIR)$(PREFIX)/share/$${file%%:*}"; done
	rm -rf $(DESTDIR)$(PREFIX)/libexec/ojail

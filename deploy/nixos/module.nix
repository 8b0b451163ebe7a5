# Origin, relay and device of distd as services of NixOS, hardened as the units in deploy/ are.
#
#   imports = [ ./module.nix ];
#   services.distd.package = …;            # has bin/distd-server, bin/distd-peer and bin/distd
#   services.distd.origin = { enable = true; settings.name = [ "updates.example.com" ]; };
#
# docs/install.md, "NixOS", has more.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.distd;
  inherit (lib) mkEnableOption mkIf mkMerge mkOption types;
  toml = pkgs.formats.toml { };

  packageOf = name: mkOption {
    type = types.package;
    default = cfg.package;
    description = "Package with the program ${name}.";
  };
  environmentFile = what: mkOption {
    type = types.nullOr types.path;
    default = null;
    description = ''
      File with variables of ${what}, which stays out of the Nix store: passwords and other secrets belong there.
    '';
  };
  openFirewall = mkOption {
    type = types.bool;
    default = false;
    description = "Whether the ports are opened in the firewall. They are those of the defaults; open others by hand.";
  };

  # What all three units say.
  contained = {
    Type = "notify";
    Restart = "on-failure";
    RestartSec = 5;
    UMask = "0077";
    LimitNOFILE = 65536;
    LimitCORE = 0;
    ProtectProc = "invisible";
    NoNewPrivileges = true;
    ProtectSystem = "strict";
    PrivateTmp = true;
    ProtectKernelTunables = true;
    ProtectControlGroups = true;
    StateDirectoryMode = "0700";
    SystemCallFilter = [ "@system-service" ];
    MemoryDenyWriteExecute = true;
  };
  # What origin and relay say besides: they need no devices, no homes and no rights but one.
  server = contained // {
    WatchdogSec = 60;
    # For port 443, which passes most firewalls.
    AmbientCapabilities = [ "CAP_NET_BIND_SERVICE" ];
    CapabilityBoundingSet = [ "CAP_NET_BIND_SERVICE" ];
    ProtectHome = true;
    PrivateDevices = true;
    ProtectKernelModules = true;
    ProtectKernelLogs = true;
    ProtectClock = true;
    ProtectHostname = true;
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    LockPersonality = true;
    RemoveIPC = true;
    SystemCallArchitectures = "native";
    RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" ];
  };
  unit = description: {
    inherit description;
    wants = [ "network-online.target" ];
    after = [ "network-online.target" ];
    wantedBy = [ "multi-user.target" ];
    # The network or DNS may come minutes after boot: the program tries until it is there.
    startLimitIntervalSec = 0;
    environment.MALLOC_ARENA_MAX = "2";
  };
  userOf = name: {
    users.users.${name} = { isSystemUser = true; group = name; };
    users.groups.${name} = { };
  };
in
{
  options.services.distd = {
    package = mkOption {
      type = types.package;
      description = "Package with the programs distd-server, distd-peer and distd.";
    };

    origin = {
      enable = mkEnableOption "the origin of distd";
      package = packageOf "distd-server";
      settings = mkOption {
        type = toml.type;
        default = { };
        example = { name = [ "updates.example.com" ]; zstd_level = 9; };
        description = ''
          Settings of docs/operations.md, as in server.toml. The file is in the Nix store, where everybody reads it:
          give the address of a database with a password as DISTD_SERVER_DB in environmentFile.
        '';
      };
      environmentFile = environmentFile "the origin, such as DISTD_SERVER_DB and AWS_SECRET_ACCESS_KEY";
      inherit openFirewall;
    };

    relay = {
      enable = mkEnableOption "a relay of distd";
      package = packageOf "distd-peer";
      settings = mkOption {
        type = toml.type;
        default = { };
        example = { parents = [ "updates.example.com:7444" ]; cache.max_bytes = 50000000000; };
        description = "Settings of docs/operations.md, as in peer.toml.";
      };
      joinTokenFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        description = "File outside the Nix store with a join token; needed until the relay has enrolled; null afterwards, or leave the file.";
      };
      environmentFile = environmentFile "the relay, such as DISTD_PEER_PROXY_URL";
      inherit openFirewall;
    };

    device = {
      enable = mkEnableOption "the agent of a device of distd, which installs releases and serves neighbours";
      package = packageOf "distd";
      parents = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "relay.example.com:4433" ];
        description = "Relays or origins that the device enrols at and asks, nearest first.";
      };
      joinTokenFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        description = "File outside the Nix store with a join token; needed until the device has enrolled; null afterwards, or leave the file.";
      };
      settings = mkOption {
        type = types.attrsOf types.str;
        default = { };
        example = { DISTD_FOLLOW = "os:stable"; DISTD_FOLLOW_INTO = "/var/lib/distd/os"; };
        description = "Settings of docs/operations.md by the names of their variables. They win over client.toml.";
      };
      writablePaths = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Directories and devices outside /var/lib/distd in which releases are installed.";
      };
      environmentFile = environmentFile "the device, such as DISTD_PROXY_URL";
      inherit openFirewall;
    };
  };

  config = mkMerge [
    (mkIf cfg.origin.enable (mkMerge [
      (userOf "distd-server")
      {
        systemd.services.distd-server = unit "distd origin" // {
          serviceConfig = server // {
            # A database of a large fleet migrates for as long as it takes.
            TimeoutStartSec = "infinity";
            ExecStart = "${cfg.origin.package}/bin/distd-server serve --config ${
              toml.generate "server.toml" ({ data = "/var/lib/distd-server"; } // cfg.origin.settings)
            }";
            User = "distd-server";
            StateDirectory = "distd-server";
            # Another origin has taken database or store over: the two would take them from each other for ever.
            RestartPreventExitStatus = 3;
            # The origin has started the signer, and the signer ends with it, not before.
            KillMode = "mixed";
          } // lib.optionalAttrs (cfg.origin.environmentFile != null) {
            EnvironmentFile = cfg.origin.environmentFile;
          };
        };
        networking.firewall = mkIf cfg.origin.openFirewall {
          allowedTCPPorts = [ 7443 7444 ];
          allowedUDPPorts = [ 7444 ];
        };
      }
    ]))

    (mkIf cfg.relay.enable (mkMerge [
      (userOf "distd-peer")
      {
        systemd.services.distd-peer = unit "distd relay" // {
          serviceConfig = server // {
            ExecStart = "${cfg.relay.package}/bin/distd-peer run --config ${
              toml.generate "peer.toml" ({ data = "/var/lib/distd-peer"; } // cfg.relay.settings)
            }" + lib.optionalString (cfg.relay.joinTokenFile != null) " --token-file %d/join-token";
            User = "distd-peer";
            StateDirectory = "distd-peer";
          } // lib.optionalAttrs (cfg.relay.joinTokenFile != null) {
            LoadCredential = [ "join-token:${toString cfg.relay.joinTokenFile}" ];
          } // lib.optionalAttrs (cfg.relay.environmentFile != null) {
            EnvironmentFile = cfg.relay.environmentFile;
          };
        };
        networking.firewall = mkIf cfg.relay.openFirewall {
          allowedTCPPorts = [ 4433 ];
          allowedUDPPorts = [ 4433 ];
        };
      }
    ]))

    (mkIf cfg.device.enable {
      # For distd enroll, distd status and the like.
      environment.systemPackages = [ cfg.device.package ];
      systemd.services.distd-agent = unit "distd agent" // {
        environment = { MALLOC_ARENA_MAX = "2"; } // cfg.device.settings // lib.optionalAttrs (cfg.device.parents != [ ]) {
          DISTD_PARENT = lib.concatStringsSep "," cfg.device.parents;
        };
        # A device that is enrolled has a certificate, and needs no token.
        preStart = lib.optionalString (cfg.device.joinTokenFile != null) ''
          test -e /var/lib/distd/node.pem ||
            ${cfg.device.package}/bin/distd --data /var/lib/distd enroll --token-file "$CREDENTIALS_DIRECTORY/join-token"
        '';
        serviceConfig = contained // {
          # A small device may be busy for long: a minute could end it in the middle of its work.
          WatchdogSec = "5min";
          ExecStart = "${cfg.device.package}/bin/distd --data /var/lib/distd agent";
          # On a metered link the agent ends by itself.
          RestartPreventExitStatus = 2;
          StateDirectory = "distd";
          ProtectHome = "read-only";
          # Not ProtectClock=: it would take away all block devices, and with them the slots.
          RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" "AF_NETLINK" ];
        } // lib.optionalAttrs (cfg.device.writablePaths != [ ]) {
          ReadWritePaths = cfg.device.writablePaths;
        } // lib.optionalAttrs (cfg.device.joinTokenFile != null) {
          LoadCredential = [ "join-token:${toString cfg.device.joinTokenFile}" ];
        } // lib.optionalAttrs (cfg.device.environmentFile != null) {
          EnvironmentFile = cfg.device.environmentFile;
        };
      };
      networking.firewall = mkIf cfg.device.openFirewall {
        allowedUDPPorts = [ 4434 ];
      };
    })
  ];
}

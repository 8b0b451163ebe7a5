# Evaluates deploy/nixos/module.nix with the few functions of nixpkgs that it uses, and returns the units that it makes.
# Without nixpkgs, types are not checked: what the module gives to systemd is.
{ module }:
let
  merge = left: right: left // builtins.mapAttrs (name: value:
    if left ? ${name} && builtins.isAttrs left.${name} && builtins.isAttrs value then merge left.${name} value else value
  ) right;
  lib = {
    mkIf = condition: value: if condition then value else { };
    mkMerge = builtins.foldl' merge { };
    mkOption = option: option // { isOption = true; };
    mkEnableOption = description: { isOption = true; inherit description; default = false; };
    optionalAttrs = condition: value: if condition then value else { };
    optionalString = condition: value: if condition then value else "";
    concatStringsSep = builtins.concatStringsSep;
    types = {
      package = "package"; path = "path"; bool = "bool"; str = "str";
      nullOr = of: "null or ${of}"; listOf = of: "list of ${of}"; attrsOf = of: "attributes of ${of}";
    };
  };
  pkgs.formats.toml = { }: {
    type = "toml";
    generate = name: value: builtins.toFile name (builtins.toJSON value);
  };
  defaults = option: if option ? isOption then option.default or null else builtins.mapAttrs (_: defaults) option;
  evaluate = given:
    let
      made = (import module) { inherit lib pkgs config; };
      config.services.distd = merge (defaults made.options.services.distd) given;
    in
    { units = { }; } // made.config;
  package = "/package";
  # Every option of the module once.
  full = evaluate {
    inherit package;
    origin = { enable = true; inherit package; openFirewall = true; settings.name = [ "updates.example.com" ]; environmentFile = "/run/keys/origin"; };
    relay = { enable = true; inherit package; openFirewall = true; joinTokenFile = "/run/keys/join"; environmentFile = "/run/keys/relay"; };
    device = {
      enable = true; inherit package; openFirewall = true; joinTokenFile = "/run/keys/join"; parents = [ "a:1" "b:2" ];
      settings.DISTD_FOLLOW = "os:stable"; writablePaths = [ "/srv/os" ]; environmentFile = "/run/keys/device";
    };
  };
  plain = evaluate {
    inherit package;
    origin = { enable = true; inherit package; };
    relay = { enable = true; inherit package; };
    device = { enable = true; inherit package; };
  };
in
{ inherit full plain; nothing = evaluate { }; }

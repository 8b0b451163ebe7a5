// A certified OpenID provider on a free port of this machine, with its own forms for signing in, for tests. Whoever signs
// in as "ops-NAME" is in the group "operators", anybody else in "visitors".
//
// node provider.mjs, with REDIRECT, the address to which it sends people back. Prints its own address.
import { createServer } from "node:http";
import { Provider } from "oidc-provider";

const server = createServer().listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: "distd",
        client_secret: "a secret: with+odd&signs of 2026",
        redirect_uris: [process.env.REDIRECT],
        response_types: ["code"],
        grant_types: ["authorization_code"],
      },
    ],
    claims: { openid: ["sub"], profile: ["preferred_username", "groups"] },
    conformIdTokenClaims: false,
    pkce: { required: () => true },
    findAccount: (_, id) => ({
      accountId: id,
      claims: () => ({
        sub: id,
        preferred_username: id,
        groups: id.startsWith("ops-") ? ["operators", "others"] : ["visitors"],
      }),
    }),
  });
  server.on("request", provider.callback());
  console.log(issuer);
});

import { inspect } from "node:util";
import { nkeys } from "@nats-io/nats-core";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { connect, disconnect } from "../../src/nats/connection.ts";
import { loginWith } from "../../src/nats/login.ts";
import { signerOf } from "../../src/nats/nkey.ts";
import { serversOf } from "../../src/nats/servers.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { credsFile, makeOperator } from "../support/operator.ts";

const seedOf = (pair: ReturnType<typeof nkeys.createUser>) => new TextDecoder().decode(pair.getSeed());

describe("a seed", () => {
  it("signs as the client's own curve does", async () => {
    for (let n = 0; n < 20; n++) {
      const user = nkeys.createUser();
      const signer = signerOf(seedOf(user), "NATS_NKEY");
      const nonce = crypto.randomUUID();
      expect(await signer.publicKey()).toBe(user.getPublicKey());
      expect(await signer.sign(nonce)).toBe(Buffer.from(user.sign(Buffer.from(nonce))).toString("base64"));
    }
  });

  const user = nkeys.createUser();
  const seed = seedOf(user);
  const swapped = seed.replace(/(.)(.)$/, (_, a, b) => (a === b ? `${a === "A" ? "B" : "A"}${b}` : `${b}${a}`));
  it.each([
    ["cut short", seed.slice(0, -7), "got 51: it is cut short"],
    ["with more behind it", `${seed}AA`, "got 60: too many"],
    ["with two characters swapped", swapped, "a character was lost or changed"],
    ["in small letters", `SU${seed.slice(2).toLowerCase()}`, "characters that are in no seed"],
    ["of an account", seedOf(nkeys.createAccount()), "the seed of an account, which cannot log in"],
    ["that is the public key", user.getPublicKey(), "a user's public key"],
    ["that is a password", "hunter2", "7 characters that begin otherwise"],
  ])("%s is refused in words that tell nothing of it", (_, wrong, words) => {
    const refused = () => loginWith({ nkey: wrong });
    expect(refused).toThrow(/^NATS_NKEY: expected a user's seed/);
    expect(refused).toThrow(words);
    expect(refused).not.toThrow(wrong.slice(4, 12));
  });

  it("of which any character is changed is refused", () => {
    for (let at = 0; at < seed.length; at++) {
      const changed = `${seed.slice(0, at)}${seed[at] === "A" ? "B" : "A"}${seed.slice(at + 1)}`;
      expect(() => loginWith({ nkey: changed })).toThrow(/^NATS_NKEY: expected/);
    }
  });
});

describe("a .creds file", () => {
  const creds = makeOperator().creds();
  const [, jwt = "", seed = ""] = /-\n(ey.*)\n[\s\S]*-\n(SU.*)\n/.exec(creds) ?? [];
  const account = `${jwt.split(".")[0]}.${Buffer.from('{"nats":{"type":"account"}}').toString("base64url")}.c2ln`;

  it.each([
    ["as it is", creds],
    ["with its line ends escaped", creds.replaceAll("\n", "\\n")],
    ["with those of Windows", creds.replaceAll("\n", "\r\n")],
    ["with spaces in their place", creds.replaceAll("\n", " ")],
  ])("is taken %s", (_, text) => {
    expect(loginWith({ creds: text }).prepare).toBeTypeOf("function");
  });

  it.each([
    ["its name", "/run/secrets/user.creds", "what looks like a file's name"],
    ["its JWT alone", jwt, "characters without either"],
    ["its first part", creds.slice(0, 120), "NATS USER JWT has no end"],
    ["all but its seed", creds.slice(0, creds.indexOf("-----BEGIN USER")), "a JWT without a seed"],
    ["all but its end", creds.slice(0, -40), "USER NKEY SEED has no end"],
    ["its seed alone", credsFile(jwt, seed).slice(credsFile(jwt, seed).indexOf("\n\n")), "a seed without a JWT"],
    [
      "a JWT that was changed",
      credsFile(jwt.replace(".", "."), seed).replace(".ey", ".zz"),
      "a JWT that cannot be read",
    ],
    ["the JWT of an account", credsFile(account, seed), "the JWT of an account"],
    ["a seed that was cut", credsFile(jwt, seed.slice(0, 30)), "its seed: expected a user's seed"],
  ])("of which there is %s is refused in words that tell nothing of it", (_, text, words) => {
    const refused = () => loginWith({ creds: text });
    expect(refused).toThrow(/^NATS_CREDS/);
    expect(refused).toThrow(words);
    expect(refused).not.toThrow(/eyJ|SU[A-Z2-7]{6}|secrets/);
  });

  it("is one login, and no other may stand beside it", () => {
    expect(() => loginWith({ creds, token: "t" })).toThrow(/^NATS_CREDS and NATS_TOKEN are set: expected one/);
  });
});

describe("a secret", () => {
  const secret = fc.stringMatching(/^[A-Za-z0-9/?#@:,%+ -]{8,20}$/);
  const around = fc.constantFrom("ws://u:%@h:1", "wss://%@h", "nats://u:%@h", "u:%@h", "ws://h,wss://u:%@h", "%");

  it("is in no error about a setting, however it is written", () => {
    fc.assert(
      fc.property(secret, around, (secret, form) => {
        for (const wrong of [
          () => serversOf(form.replace("%", () => secret)),
          () => loginWith({ nkey: secret }),
          () => loginWith({ nkey: `SU${secret}` }),
          () => loginWith({ creds: secret }),
          () => loginWith({ creds: credsFile(secret, `SU${secret}`) }),
        ]) {
          const told = textThrown(wrong);
          for (let at = 0; at + 5 <= secret.length; at++) expect(told).not.toContain(secret.slice(at, at + 5));
        }
      }),
    );
  });

  function textThrown(act: () => unknown): string {
    try {
      act();
      return "";
    } catch (error) {
      return inspect(error, { depth: 10 }).split("\n    at ")[0] ?? "";
    }
  }
});

describe.concurrent("logging in", () => {
  it("with an nkey, in the first flight", async ({ expect }) => {
    const user = nkeys.createUser();
    await using server = await startNatsServer({
      config: `authorization { users: [{ nkey: ${user.getPublicKey()} }] }`,
    });
    const connection = await connect({ url: server.url, nkey: seedOf(user) }, 5_000);
    await expect(connection.request("nobody.there", "")).rejects.toThrow(/no responders/);
    await connection.confirmed;
    disconnect(connection);
    const stranger = await connect({ url: server.url, nkey: seedOf(nkeys.createUser()) }, 5_000);
    await expect(stranger.confirmed).rejects.toMatchObject({
      reason: "authentication",
      message: expect.stringMatching(/Check that the server's configuration has this user's public key/),
    });
  });

  it("with a JWT, and what is wrong with one that is refused", async ({ expect }) => {
    const operator = makeOperator();
    await using server = await startNatsServer({ config: operator.config });
    const confirmed = async (creds?: string) => {
      const connection = await connect({ url: server.url, creds }, 5_000);
      try {
        await connection.confirmed;
      } finally {
        disconnect(connection);
      }
    };
    await confirmed(operator.creds());
    const soon = Math.floor(Date.now() / 1_000) - 60;
    const refusals = [
      [operator.creds({ exp: soon }), `The JWT in NATS_CREDS expired at ${new Date(soon * 1_000).toISOString()}`],
      [operator.creds({ allowed_connection_types: ["STANDARD"] }), "allows connections of type STANDARD alone"],
      [operator.creds({ by: nkeys.createAccount() }), "neither revoked nor of another operator"],
      [undefined, "Set NATS_CREDS, NATS_NKEY or NATS_TOKEN"],
    ] as const;
    for (const [creds, words] of refusals) {
      await expect(confirmed(creds)).rejects.toMatchObject({
        code: "connection-failed",
        reason: "authentication",
        message: expect.stringContaining(words),
      });
    }
  });
});

describe("a token", () => {
  it("may have white space around it, as a file's last line has", async () => {
    await using server = await startNatsServer({ config: "authorization { token: t0ken }" });
    const connection = await connect({ url: server.url, token: " t0ken\n" }, 5_000);
    await connection.confirmed;
    disconnect(connection);
  });
});

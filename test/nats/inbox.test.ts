import { describe, expect, it } from "vitest";
import { inboxPrefixOf } from "../../src/nats/inbox.ts";

const credsOf = (claims: object) =>
  `-----BEGIN NATS USER JWT-----\n${[{ alg: "ed25519-nkey" }, claims, "signature"]
    .map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"))
    .join(".")}\n------END NATS USER JWT------\n`;

describe("the inbox of a login", () => {
  it("is its own, by its name", () => {
    expect(inboxPrefixOf({ user: "sample-http" })).toBe("_INBOX.sample-http");
    expect(inboxPrefixOf({ creds: credsOf({ name: "sample-http", sub: "U~?" }) })).toBe("_INBOX.sample-http");
  });

  it.each([
    {},
    { user: "" },
    { user: "a.b" },
    { user: "*" },
    { user: ">" },
    { creds: credsOf({}) },
    { creds: credsOf({ name: "Ann Other" }) },
    { creds: "none" },
  ])("is everyone's where it has no name that can be one: %j", (login) => {
    expect(inboxPrefixOf(login)).toBe("_INBOX");
  });
});

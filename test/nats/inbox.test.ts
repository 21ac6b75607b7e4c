import { describe, expect, it } from "vitest";
import { inboxPrefixOf } from "../../src/nats/inbox.ts";
import { loginWith } from "../../src/nats/login.ts";
import { makeOperator } from "../support/operator.ts";

describe("the inbox of a login", () => {
  it("is its own, by its name", () => {
    expect(inboxPrefixOf(loginWith({}, "sample-http").name)).toBe("_INBOX.sample-http");
  });

  it("is that of its JWT, whatever an environment has made of the line ends", () => {
    const creds = makeOperator().creds();
    const forms = [creds, creds.replaceAll("\n", "\r\n"), creds.replaceAll("\n", "\\n"), creds.replaceAll("\n", " ")];
    expect(forms.map((form) => loginWith({ creds: form }).name)).toEqual(Array(4).fill("function"));
  });

  it.each([undefined, "", "a.b", "*", ">", "Ann Other"])(
    "is everyone's where it has no name that can be one: %j",
    (name) => {
      expect(inboxPrefixOf(name)).toBe("_INBOX");
    },
  );
});

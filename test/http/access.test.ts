import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import * as z from "zod";
import { settingOf } from "../../src/http/access.ts";
import type { HttpOptions } from "../../src/http/http.ts";
import { RequestError } from "../../src/http/problem.ts";
import { createRateLimit } from "../../src/http/rate-limit.ts";
import { publicStream } from "../../src/http/subjects.ts";
import { defineStream } from "../../src/index.ts";
import { type System, startSystem } from "../support/system.ts";
import { app, handled, secrets, signed, surfaceOf, tokens } from "./surface.ts";

let system: System;
beforeAll(async () => {
  system = await startSystem(app);
});
afterAll(() => system[Symbol.asyncDispose]());

const order = '{"orderId":"1"}';
const bearer = (token: string) => ({ Authorization: `Bearer ${token}` });

async function ask(
  method: string,
  path: string,
  {
    headers = {},
    body,
    ...options
  }: { headers?: Record<string, string>; body?: string | ReadableStream<Uint8Array> } & Partial<HttpOptions> = {},
) {
  const request = new Request(`https://api.test${path}`, {
    method,
    headers: { ...(body !== undefined && { "Content-Type": "application/json" }), ...headers },
    ...(body !== undefined && { body, duplex: "half" }),
  } as RequestInit);
  const response = await surfaceOf(system, options).fetch(request);
  const text = await response.text();
  for (const secret of Object.values(secrets)) expect(text).not.toContain(secret);
  expect(response.headers.get("Cache-Control")).toBe("no-store");
  const answer = text === "" ? {} : (JSON.parse(text) as Record<string, unknown>);
  return { status: response.status, headers: response.headers, answer };
}

const publish = (subject: string, more: Parameters<typeof ask>[2] = {}) =>
  ask("POST", `/publish/${subject}`, { body: order, ...more });
const storedIn = async (stream: string) => (await system.jsm.streams.info(stream)).state.messages;
const all = async () => Promise.all(["ORDERS", "IMAGES", "DEAD"].map(storedIn));

describe("tokens", () => {
  const { publish: full, scoped, schedules, run, admin, cron } = secrets;
  it.each([
    [
      "POST",
      "/publish/orders.failed",
      { [full]: 202, [admin]: 202, [scoped]: 403, [schedules]: 403, [run]: 403, [cron]: 403 },
    ],
    ["POST", "/publish/orders.placed", { [scoped]: 202, [run]: 403 }],
    ["GET", "/schedules", { [schedules]: 200, [admin]: 200, [full]: 403, [scoped]: 403, [run]: 403, [cron]: 403 }],
    ["GET", "/schedules/x", { [schedules]: 404, [full]: 403 }],
    ["DELETE", "/schedules/x", { [schedules]: 404, [full]: 403 }],
    ["POST", "/schedules/x/fire", { [schedules]: 404, [full]: 403 }],
    ["POST", "/run/billing", { [run]: 200, [admin]: 200, [cron]: 200, [full]: 403, [scoped]: 403, [schedules]: 403 }],
    ["GET", "/run/billing", { [cron]: 200, [run]: 405, [admin]: 405, [full]: 403 }],
    ["HEAD", "/run/billing", { [cron]: 405, [run]: 405 }],
    ["POST", "/release", { [run]: 200, [admin]: 200, [cron]: 200, [full]: 403, [schedules]: 403 }],
    ["GET", "/release", { [cron]: 200, [run]: 405 }],
    ["GET", "/health", { [run]: 200, [admin]: 200, [cron]: 200, [full]: 403, [schedules]: 403 }],
    ["GET", "/openapi.json", { [run]: 200, [admin]: 200, [full]: 200, [scoped]: 200, [schedules]: 200 }],
  ] as const)("%s %s opens for those it is for alone", async (method, path, expected) => {
    const body = method === "POST" && path.startsWith("/publish") ? order : undefined;
    for (const [token, status] of Object.entries({ ...expected, "": 401, [`${admin}x`]: 401, [admin.slice(1)]: 401 })) {
      const got = await ask(method, path, { headers: bearer(token), ...(body && { body }) });
      expect({ token, status: got.status }).toEqual({ token, status });
      if (status === 401 || status === 403) expect(got.headers.has("WWW-Authenticate")).toBe(status === 401);
    }
  });

  it("are replaced while both open", async () => {
    const two = { tokens: () => ({ publish: "first-token-of-two\n  second-token-of-two" }) };
    expect((await publish("orders.placed", { headers: bearer("first-token-of-two"), ...two })).status).toBe(202);
    expect((await publish("orders.placed", { headers: bearer("second-token-of-two"), ...two })).status).toBe(202);
    expect((await publish("orders.placed", { headers: bearer("third-token-of-two"), ...two })).status).toBe(401);
  });

  it("for some subjects say nothing of the others", async () => {
    const headers = bearer(scoped);
    expect((await publish("notes.x", { headers, body: '"x"' })).status).toBe(202);
    for (const [subject, status] of [
      ["orders.failed", 403], // there is one
      ["orders.nope", 403], // there is none
      ["notes.a.b", 403],
      ["notes.*", 404],
    ] as const) {
      const { answer, ...got } = await publish(subject, { headers, body: '"x"' });
      expect({ subject, status: got.status }).toEqual({ subject, status });
      expect(JSON.stringify(answer)).not.toMatch(/images|notes\.>/);
    }
  });

  it.each([
    ["publish", "not a subject..:token-0123456789 orders.>"],
    ["publish", "orders..x:half-of-a-token-0123456789"],
    ["publish", "orders.placed:"],
    ["publish", ":token-0123456789-secret"],
    ["run", "orders.placed:token-0123456789-secret"],
    ["admin", "one two:three-of-a-secret"],
    ["webhooks", "orders.placed:half-of-a-secret"],
    ["webhooks", `orders.placed:whsec_${secrets.webhook} orders.failed:whsec_${secrets.webhook}`],
  ] as const)("that are malformed (%s) close everything, and are not told", async (name, setting) => {
    const malformed = { tokens: () => ({ ...tokens, [name]: setting }) };
    const { status, answer } = await publish("orders.placed", { headers: bearer(full), ...malformed });
    const named = settingOf[name];
    const hook = await publish("orders.placed", { headers: signed(order), ...malformed });
    expect({ status: hook.status, answer: hook.answer }).toEqual({ status, answer });
    expect({ status, type: answer.type }).toEqual({ status: 503, type: "urn:sortie:problem:not-configured" });
    expect(answer.detail).toMatch(new RegExp(`${named}, entry \\d: expected`));
    expect(answer.detail).not.toMatch(/0123456789|-secret|half/);
  });

  it.each([
    ["POST", "/publish/orders.placed", "SORTIE_PUBLISH_TOKEN"],
    ["GET", "/schedules", "SORTIE_SCHEDULES_TOKEN"],
    ["POST", "/run/billing", "SORTIE_RUN_TOKEN"],
    ["POST", "/release", "SORTIE_RUN_TOKEN"],
    ["GET", "/openapi.json", "SORTIE_ADMIN_TOKEN"],
  ])("that are not set leave %s %s closed", async (method, path, setting) => {
    for (const none of [{}, { publish: "", schedules: " ", run: "\n", admin: "", cron: "", webhooks: "" }]) {
      const { status, answer } = await ask(method, path, { headers: bearer("undefined"), tokens: () => none });
      expect({ status, detail: answer.detail }).toMatchObject({
        status: 503,
        detail: expect.stringContaining(setting),
      });
    }
  });

  it("that are short are told of in the log, and not which they are", async () => {
    const warned = vi.spyOn(console, "warn").mockReturnValue();
    await publish("orders.placed", { headers: bearer("tiny"), tokens: () => ({ publish: "tiny" }) });
    expect(warned).toHaveBeenCalledWith(expect.stringContaining('"setting":"SORTIE_PUBLISH_TOKEN"'));
    expect(JSON.stringify(warned.mock.calls)).not.toContain("tiny");
    warned.mockRestore();
  });
});

describe("webhooks", () => {
  const body = '{"orderId":"hook"}';
  const hook = (headers: Record<string, string>, subject = "orders.placed", more: Parameters<typeof ask>[2] = {}) =>
    publish(subject, { headers, body, ...more });

  it("are taken by their signature, stored under their id, and once", async () => {
    const headers = signed(body, { id: "msg_once" });
    const { status, answer } = await hook(headers);
    expect({ status, duplicate: answer.duplicate }).toEqual({ status: 202, duplicate: false });
    expect((await hook(headers)).answer).toEqual({ ...answer, duplicate: true }); // played again
    const message = await system.jsm.streams.getMessage("ORDERS", { seq: answer.sequence as number });
    expect([message?.header.get("Nats-Msg-Id"), message?.string()]).toEqual(["msg_once", body]);
  });

  it("are taken while a secret is replaced, at either side", async () => {
    const [before, after] = [signed(body, { secret: secrets.webhookBefore }), signed(body)];
    expect((await hook(before)).status).toBe(202);
    const both = [before, after].map((one) => one["webhook-signature"]).join(" ");
    expect((await hook({ ...after, "webhook-signature": `v2,x v1,AAAA ${both}` })).status).toBe(202);
  });

  it.each<[string, Record<string, string>, string?]>([
    ["another body", signed('{"orderId":"other"}')],
    ["the body, written otherwise", signed('{ "orderId":"hook"}')],
    ["another id", { ...signed(body), "webhook-id": "msg_2" }],
    ["another time", { ...signed(body), "webhook-timestamp": `${Math.floor(Date.now() / 1_000) - 1}` }],
    ["another secret", signed(body, { secret: Buffer.from("x".repeat(32)).toString("base64") })],
    ["a secret of another subject", signed(body), "orders.failed"],
    ["a subject that has no secret", signed(body), "notes.x"],
    ["a subject that there is not", signed(body), "orders.nope"],
    ["a subject of dead letters", signed(body), "notes.dead.billing"],
    ["too long ago", signed(body, { at: Date.now() - 116_000 })], // half of what a request leaves of four minutes
    ["the future", signed(body, { at: Date.now() + 180_000 })],
    ["no time", { ...signed(body), "webhook-timestamp": "NaN" }],
    ["a time in hexadecimal", { ...signed(body), "webhook-timestamp": "0x7fffffff" }],
    ["no id", { ...signed(body), "webhook-id": "" }],
    ["an id with spaces", signed(body, { id: "a b" })],
    ["no signature of a known version", { ...signed(body), "webhook-signature": "v1a,AAAA v2,AAAA" }],
    ["an empty signature", { ...signed(body), "webhook-signature": "v1," }],
    ["a signature that is none", { ...signed(body), "webhook-signature": "v1,%%%" }],
    [
      "a signature after a hundred others",
      { ...signed(body), "webhook-signature": `${"v1,AAAA ".repeat(100)}${signed(body)["webhook-signature"]}` },
    ],
  ])("with %s are refused, all in the same words", async (_, headers, subject) => {
    const before = await all();
    const { status, answer } = await hook(headers, subject);
    expect({ status, type: answer.type }).toEqual({ status: 401, type: "urn:sortie:problem:unauthorized" });
    expect(answer.detail).toMatch(/^Expected a signature of Standard Webhooks/);
    expect(await all()).toEqual(before);
  });

  it("are in time when all of them has come, and not only when they begin", async () => {
    const before = await all();
    const headers = signed(body, { id: "msg_slow", at: Date.now() - 110_000 });
    const pull = (controller: ReadableStreamDefaultController) => {
      vi.setSystemTime(Date.now() + 8_000);
      controller.enqueue(new TextEncoder().encode(body));
      controller.close();
    };
    const slow = () => new ReadableStream<Uint8Array>({ pull }, { highWaterMark: 0 }); // nothing before it is read
    try {
      expect((await hook(headers, "orders.placed", { body: slow() })).status).toBe(401);
    } finally {
      vi.useRealTimers();
    }
    expect(await all()).toEqual(before);
  });

  it("do what was signed and nothing else", async () => {
    const before = await all();
    const [headers, own] = [
      signed(body, { id: "msg_only" }),
      signed(body, { id: "ORDERS.billing.1.1764000000000000000.x" }),
    ];
    expect((await hook(headers, "orders.placed?delay=1h")).status).toBe(400);
    expect((await hook({ ...headers, "Idempotency-Key": "other" })).status).toBe(400);
    expect((await hook({ ...headers, Authorization: "Bearer x" })).status).toBe(401);
    expect((await hook({ ...headers, Authorization: "" })).status).toBe(401);
    expect((await hook(own)).status).toBe(400);
    expect(await all()).toEqual(before);
  });

  it.each([
    "orders.*:whsec_",
    "orders.placed:whsec_c2hvcnQ=",
    `orders.placed:${secrets.webhook}`,
    `orders.placed,orders.failed:whsec_${secrets.webhook}`,
    `whsec_${secrets.webhook}`,
    "orders.placed:whsec_%%%",
  ])("have a setting that closes them where it is malformed: %s", async (webhooks) => {
    const { status, answer } = await hook(signed(body), "orders.placed", { tokens: () => ({ ...tokens, webhooks }) });
    expect({ status, detail: answer.detail }).toMatchObject({
      status: 503,
      detail: expect.stringMatching(/^SORTIE_WEBHOOK_SECRET, entry 1: expected one subject without wildcards/),
    });
  });
});

// what the OWASP list of API risks has to try on a surface like this one
describe("no way around", () => {
  const headers = bearer(secrets.scoped);
  const noHeaders = {};
  it.each<[string, string, string, Record<string, string>, number]>([
    ["a token in the query", "POST", `/publish/notes.x?access_token=${secrets.publish}`, noHeaders, 401],
    ["a token in a cookie", "POST", "/publish/notes.x", { Cookie: `token=${secrets.publish}` }, 401],
    ["a token of another scheme", "POST", "/publish/notes.x", { Authorization: `Basic ${secrets.publish}` }, 401],
    ["no scheme", "POST", "/publish/notes.x", { Authorization: secrets.publish }, 401],
    [
      "two tokens in one header",
      "POST",
      "/publish/notes.x",
      { Authorization: `Bearer x, Bearer ${secrets.publish}` },
      401,
    ],
    ["two tokens after one scheme", "POST", "/publish/notes.x", { Authorization: `Bearer ${secrets.publish} x` }, 401],
    ["two tokens of a setting", "POST", "/publish/notes.x", { Authorization: `Bearer ${tokens.publish}` }, 401],
    [
      "an entry instead of its token",
      "POST",
      "/publish/notes.x",
      bearer(`notes.*,orders.placed:${secrets.scoped}`),
      401,
    ],
    ["a method in a header", "GET", "/publish/notes.x", { ...headers, "X-HTTP-Method-Override": "POST" }, 405],
    [
      "another method in a header",
      "POST",
      "/schedules/x",
      { ...bearer(secrets.schedules), "X-Method-Override": "DELETE" },
      405,
    ],
    ["a method in the query", "GET", "/run/billing?_method=POST", bearer(secrets.run), 405],
    [
      "a path in a header",
      "POST",
      "/health",
      { "X-Original-URL": "/publish/notes.x", "X-Rewrite-URL": "/release" },
      405,
    ],
    [
      "an address that is ours",
      "POST",
      "/release",
      { "X-Forwarded-For": "127.0.0.1", Forwarded: "for=127.0.0.1" },
      401,
    ],
    ["a host that is ours", "POST", "/release", { "X-Forwarded-Host": "localhost", "X-Real-IP": "::1" }, 401],
    ["a doubled slash", "POST", "//publish/notes.x", noHeaders, 404],
    ["a slash at the end", "POST", "/publish/notes.x/", noHeaders, 404],
    ["upper case", "POST", "/PUBLISH/notes.x", noHeaders, 404],
    ["an encoded letter", "POST", "/%70ublish/notes.x", noHeaders, 401],
    ["an encoded slash", "POST", "/publish%2Fnotes.x", noHeaders, 404],
    ["dots", "POST", "/publish/../release", noHeaders, 401],
    ["encoded dots", "POST", "/health/%2e%2e/release", noHeaders, 401],
    ["dots that are encoded twice", "POST", "/publish/%252e%252e%252frelease", headers, 403],
    ["a parameter of the path", "POST", "/publish;x=y/notes.x", noHeaders, 404],
    ["a backslash", "POST", "/publish\\notes.x", noHeaders, 401], // which a URL takes for a slash
    ["a subject that differs in its case", "POST", "/publish/Orders.placed", headers, 403],
    ["a subject with a dot at its end", "POST", "/publish/orders.placed.", headers, 403],
    ["a subject within an encoded slash", "POST", "/publish/orders.placed%2F..%2Forders.failed", headers, 403],
    [
      "a subject with a line break",
      "POST",
      "/publish/notes.x%0d%0aPUB%20$JS.API.STREAM.DELETE.ORDERS%200",
      bearer(secrets.publish),
      404,
    ],
    ["a subject with a null", "POST", "/publish/orders.placed%00", headers, 403],
    ["a subject in full width", "POST", "/publish/ｏｒｄｅｒｓ．placed", headers, 403],
    ["a wildcard that stands for it", "POST", "/publish/orders.*", bearer(secrets.publish), 404],
    ["all wildcards", "POST", "/publish/%3E", bearer(secrets.admin), 404],
    ["JetStream's own", "POST", "/publish/$JS.API.STREAM.DELETE.ORDERS", bearer(secrets.admin), 404],
    ["the system's own", "POST", "/publish/$SYS.REQ.SERVER.PING", bearer(secrets.admin), 404],
    ["a bucket's own", "POST", "/publish/$KV.leases.a", bearer(secrets.admin), 404],
    ["somebody's inbox", "POST", "/publish/_INBOX.abc.1", bearer(secrets.admin), 404],
    ["dead letters", "POST", "/publish/dead.images", bearer(secrets.admin), 404],
    ["dead letters that a schema covers", "POST", "/publish/notes.dead.billing", bearer(secrets.admin), 404],
    ["a schedule of the server's", "POST", "/publish/sortie.schedule.ORDERS.x", bearer(secrets.admin), 404],
    ["a schedule of Sortie's", "POST", "/publish/sortie.schedules.ORDERS.x", bearer(secrets.admin), 404],
    ["attempts", "POST", "/publish/sortie.attempts.ORDERS.billing.1.1", bearer(secrets.admin), 404],
    ["an object's method", "POST", "/publish/constructor", bearer(secrets.admin), 404],
    ["an object's prototype", "POST", "/publish/__proto__", bearer(secrets.admin), 404],
    ["another's consumer", "POST", "/run/SORTIE_SCHEDULES", bearer(secrets.run), 404],
    ["an object's method as a consumer", "POST", "/run/toString", bearer(secrets.run), 404],
    ["a form", "POST", "/publish/notes.x", { ...headers, "Content-Type": "application/x-www-form-urlencoded" }, 415],
    [
      "a form that says JSON too",
      "POST",
      "/publish/notes.x",
      { ...headers, "Content-Type": "text/plain, application/json" },
      415,
    ],
    ["no type", "POST", "/publish/notes.x", { ...headers, "Content-Type": "" }, 415],
    ["JSON that only begins so", "POST", "/publish/notes.x", { ...headers, "Content-Type": "application/jsonx" }, 415],
    ["packed JSON", "POST", "/publish/notes.x", { ...headers, "Content-Encoding": "gzip" }, 422],
    ["a key with a line's end", "POST", "/publish/notes.x", { ...headers, "Idempotency-Key": "a\tb" }, 400],
    [
      "a key of what a handler publishes",
      "POST",
      "/publish/notes.x",
      { ...headers, "Idempotency-Key": "ORDERS.billing.12.1764000000000000000.notes.x.0" },
      400,
    ],
    [
      "a key of a message without one",
      "POST",
      "/publish/notes.x",
      { ...headers, "Idempotency-Key": "ORDERS.1000" },
      400,
    ],
    [
      "a key of a release",
      "POST",
      "/publish/notes.x",
      { ...headers, "Idempotency-Key": "sortie.release.monthly@1764000000000" },
      400,
    ],
  ])("by %s", async (_, method, path, given, status) => {
    const before = await all();
    const got = await ask(method, path, { headers: given, ...(method === "POST" && { body: order }) });
    expect({ status: got.status, type: got.headers.get("Content-Type") }).toEqual({
      status,
      type: "application/problem+json",
    });
    expect(await all()).toEqual(before);
  });

  it.each([
    ["an owner", { owner: "surface" }],
    ["its state", { isPaused: true, nameless: true }],
    ["a prototype", JSON.parse('{"__proto__":{"owner":"surface"}}')],
    ["headers", { headers: { "Nats-Rollup": "all" } }],
    ["a stream", { stream: "DEAD" }],
  ])("to give a schedule %s", async (_, more) => {
    const body = JSON.stringify({ subject: "orders.placed", data: { orderId: "1" }, in: "1h", id: "mass", ...more });
    const withPrototype = body.replace(
      /\}$/,
      Object.hasOwn(more, "__proto__") ? ',"__proto__":{"owner":"surface"}}' : "}",
    );
    const got = await ask("POST", "/schedules", { headers: bearer(secrets.schedules), body: withPrototype });
    expect(got.status).toBe(400);
    expect((await ask("GET", "/schedules/mass", { headers: bearer(secrets.schedules) })).status).toBe(404);
  });

  it.each("_INBOX _INBOX.a _R_.a _GR_ _GR_.a _SYS _SYS.a sortie Sortie.schedule.x $KV.a".split(" "))(
    "to %s, even where a stream takes everything",
    (subject) => {
      const everything = defineStream("ALL", { subjects: { "*": z.any(), "*.>": z.any() } });
      const open = { streams: [everything], bindings: [] };
      expect(() => publicStream(open, subject, true)).toThrow(RequestError);
      expect(publicStream(open, `a.${subject}`, true)).toBe(everything);
      expect(publicStream(open, `${subject.split(".")[0]?.replace("$", "")}x.a`, true)).toBe(everything);
    },
  );

  it.each(["notes.dead.billing", "dead.images", "sortie.schedule.ORDERS.x", "$JS.API.INFO", "notes.*"])(
    "to schedule for %s",
    async (subject) => {
      const body = JSON.stringify({ subject, data: "x", in: "1h" });
      const { status } = await ask("POST", "/schedules", { headers: bearer(secrets.admin), body });
      expect(status).toBe(404);
    },
  );

  it("to somebody else's schedule, by its id as a key", async () => {
    const body = JSON.stringify({ subject: "orders.failed", data: { orderId: "theirs" }, in: "1h", id: "theirs" });
    const again = JSON.stringify({ subject: "notes.again", data: "x", cron: "0 6 1 * *", id: "monthly" });
    for (const one of [body, again])
      expect((await ask("POST", "/schedules", { headers: bearer(secrets.schedules), body: one })).status).toBe(201);
    for (const [subject, key] of [
      ["orders.placed", "theirs"],
      ["notes.again", "monthly"],
    ] as const) {
      const asked = { headers: { ...headers, "Idempotency-Key": key }, body: subject.startsWith("n") ? '"x"' : order };
      const got = await publish(`${subject}?delay=1s`, asked);
      expect(got).toMatchObject({ status: 422, answer: { type: "urn:sortie:problem:idempotency-key-reused" } });
    }
    const { answer } = await ask("GET", "/schedules/theirs", { headers: bearer(secrets.schedules) });
    expect(answer).toMatchObject({ schedule: { subject: "orders.failed", state: "waiting" } });
    const monthly = await ask("GET", "/schedules/monthly", { headers: bearer(secrets.schedules) });
    expect(monthly.answer).toMatchObject({ schedule: { recurring: { cron: "0 6 1 * *" } } });
  });

  it("the limit on a body, declared or not, and nothing is held of it", async () => {
    let pulled = 0;
    const endless = () =>
      new ReadableStream<Uint8Array>({
        pull(controller) {
          pulled += 1;
          controller.enqueue(new Uint8Array(64 * 1024).fill(0x20));
        },
      });
    const shown = bearer(secrets.publish);
    expect((await publish("notes.x", { headers: shown, body: endless() })).status).toBe(413);
    expect(pulled).toBeLessThan(24);
    pulled = 0;
    for (const length of ["2000000", "1e9", "99999999999999999999"])
      expect(
        (await publish("notes.x", { headers: { ...shown, "Content-Length": length }, body: endless() })).status,
      ).toBe(413);
    for (const length of ["0", "-1", "1", "abc", "5, 5"])
      expect(
        (await publish("notes.x", { headers: { ...shown, "Content-Length": length }, body: endless() })).status,
      ).toBe(413);
    pulled = 0;
    expect((await publish("notes.x", { body: endless() })).status).toBe(401);
    expect((await ask("POST", "/run/billing", { headers: bearer(secrets.run), body: endless() })).status).toBe(200);
    expect(pulled).toBeLessThan(4); // what a stream holds ready by itself
  });
});

describe("a limit on callers", () => {
  const rateLimit = { requests: 3, per: "1h" } as const;

  it("lets each ask so often, by its token, and tells when it may again", async () => {
    const http = surfaceOf(system, { rateLimit });
    const get = (token: string) => http.request("/openapi.json", { headers: bearer(token) });
    for (let n = 0; n < 3; n++) expect((await get(secrets.run)).status).toBe(200);
    const refused = await get(secrets.run);
    expect(refused.status).toBe(429);
    expect(Number(refused.headers.get("Retry-After"))).toBeGreaterThan(1_000);
    expect(await refused.json()).toMatchObject({ type: "urn:sortie:problem:too-many-requests" });
    expect((await get(secrets.admin)).status).toBe(200); // another caller
  });

  it("has an address that shows nothing, or nothing that is right, wait before it is looked at", async () => {
    const http = surfaceOf(system, { rateLimit, address: (c) => c.req.header("Test-Address") });
    const get = (token: string, from: string) =>
      http.request("/openapi.json", { headers: { ...bearer(token), "Test-Address": from } });
    for (let n = 0; n < 3; n++) expect((await get(`guess ${n}`, "192.0.2.1")).status).toBe(401);
    expect((await get("guess 4", "192.0.2.1")).status).toBe(429);
    expect((await get("guess 5", "192.0.2.2")).status).toBe(401);
    expect((await get(secrets.run, "192.0.2.1")).status).toBe(200); // nobody waits for what a neighbour does
    const network = ["2001:db8::1", "2001:db8:0:0:ffff::2", "2001:DB8::3%eth0", "2001:db8::4"];
    const statuses = [];
    for (const from of [...network, "2001:db8:0:1::1", "::ffff:192.0.2.3"])
      statuses.push((await get("x", from)).status);
    expect(statuses).toEqual([401, 401, 401, 429, 401, 401]); // one has as many addresses as there are in its network
  });

  it("has an address that cannot be told count as unknown, and says so once", async () => {
    const told = vi.spyOn(console, "error").mockReturnValue();
    const address = () => {
      throw new TypeError("no header");
    };
    const http = surfaceOf(system, { rateLimit, address });
    const get = async (token: string) => (await http.request("/openapi.json", { headers: bearer(token) })).status;
    for (const status of [401, 401, 401, 429]) expect(await get("guess")).toBe(status);
    expect(await get(secrets.run)).toBe(200);
    expect(told.mock.calls).toEqual([[expect.stringMatching(/"event":"address-unknown".*TypeError: no header/)]]);
    told.mockRestore();
  });

  it("counts whatever fails to get in, and reads no webhook's body of whom it has wait, known or not", async () => {
    const quiet = vi.spyOn(console, "error").mockReturnValue();
    const body = "{}";
    let pulled = 0;
    const counted = () => {
      const pull = (controller: ReadableStreamDefaultController) => {
        pulled += 1;
        controller.enqueue(new TextEncoder().encode(body));
        controller.close();
      };
      return new ReadableStream<Uint8Array>({ pull }, { highWaterMark: 0 });
    };
    const wrong = { ...signed("other"), "Content-Type": "application/json" };
    const fails: [status: number, path: string, init: RequestInit, more?: Partial<HttpOptions>][] = [
      [503, "/run/billing", {}, { tokens: () => ({}) }],
      [503, "/run/billing", {}, { tokens: () => ({ run: "x:y" }) }],
      [415, "/publish/orders.placed", { headers: { ...wrong, "Content-Type": "text/plain" }, body }],
      [413, "/publish/orders.placed", { headers: { ...wrong, "Content-Length": "9999999" }, body }],
      [401, "/publish/orders.placed", { headers: wrong, body }],
    ];
    for (const [status, path, init, more] of fails) {
      const http = surfaceOf(system, { rateLimit, ...more });
      const got = [];
      for (let n = 0; n < 4; n++) got.push((await http.request(path, { method: "POST", ...init })).status);
      expect(got).toEqual([status, status, status, 429]);
      if (status !== 401) continue;
      const asked = { method: "POST", headers: wrong, body: counted(), duplex: "half" } as RequestInit;
      expect((await http.request(path, asked)).status).toBe(429);
      expect(pulled).toBe(0);
    }
    quiet.mockRestore();
  });

  it("hinders no token where nobody knows the address of who guesses", async () => {
    const http = surfaceOf(system, { rateLimit });
    const get = (token: string) => http.request("/openapi.json", { headers: bearer(token) });
    const guesses = await Promise.all(Array.from({ length: 10 }, (_, n) => get(`guess${n}`)));
    expect(guesses.map(({ status }) => status).toSorted()).toEqual([...Array(3).fill(401), ...Array(7).fill(429)]);
    expect((await get(secrets.run)).status).toBe(200);
  });

  it("is the platform's where it has one, and lets in where that does not answer", async () => {
    const callers: string[] = [];
    const limit = async (_c: unknown, caller: string) => {
      callers.push(caller);
      return callers.length > 1 ? 10_000 : 0;
    };
    const get = (options: Partial<HttpOptions>) =>
      surfaceOf(system, options).request("/openapi.json", { headers: bearer(secrets.run) });
    expect([(await get({ limit })).status, (await get({ limit })).status]).toEqual([200, 429]);
    expect(new Set(callers).size).toBe(1);
    expect(callers[0]).toMatch(/^token [0-9a-f]{16}$/);
    expect((await get({ limit: () => Promise.reject(new Error("down")) })).status).toBe(200);
  });

  it("gives a turn back after its share of the time, and forgets who was away longest", () => {
    let now = 0;
    const take = createRateLimit({ requests: 10, per: "10s" }, () => now);
    expect(Array.from({ length: 11 }, () => take("a"))).toEqual([...Array(10).fill(0), 1_000]);
    now += 999;
    expect(take("a")).toBe(1);
    now += 1;
    expect([take("a"), take("a")]).toEqual([0, 1_000]);
    for (let n = 0; n < 10_000; n++) take(`other ${n}`);
    expect(take("a")).toBe(0);
    expect(() => createRateLimit({ requests: 0, per: "1s" })).toThrow(/whole number from 1/);
    for (const per of ["soon" as "1s", "0s", 0.2] as const)
      expect(() => createRateLimit({ requests: 1, per })).toThrow(/rateLimit, per: expected/);
  });
});

describe("pages of other origins", () => {
  const origin = "https://app.example.com";
  const preflight = {
    Origin: origin,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization",
  };

  it("read nothing until they are named", async () => {
    const { status, headers } = await ask("OPTIONS", "/publish/notes.x", { headers: preflight });
    expect(status).toBe(405);
    expect([...headers.keys()].filter((name) => name.startsWith("access-control"))).toEqual([]);
  });

  it("are told what they may, without credentials of the browser's own", async () => {
    const cors = { origins: [origin, "https://other.example.com"] };
    const allowed = await ask("OPTIONS", "/publish/notes.x", { headers: preflight, cors });
    expect(allowed.status).toBe(204);
    expect(Object.fromEntries(allowed.headers)).toMatchObject({
      "access-control-allow-origin": origin,
      "access-control-allow-methods": "GET,POST,DELETE",
      "access-control-allow-headers": "Authorization,Content-Type,Idempotency-Key",
      vary: expect.stringContaining("Origin"),
    });
    const asked = { headers: { Origin: origin, ...bearer(secrets.publish) }, body: '"x"' };
    for (const { headers } of [await publish("notes.x", { ...asked, cors }), await publish("nope", { ...asked, cors })])
      expect(headers.get("Access-Control-Allow-Origin")).toBe(origin);
    for (const other of ["https://evil.example", `${origin}.evil.example`, "null", "http://app.example.com"]) {
      const { headers } = await ask("OPTIONS", "/publish/notes.x", { headers: { ...preflight, Origin: other }, cors });
      expect(headers.get("Access-Control-Allow-Origin")).toBeNull();
    }
    const open = await ask("OPTIONS", "/publish/notes.x", { headers: preflight, cors: { origins: ["*"] } });
    expect(open.headers.get("Access-Control-Allow-Origin")).toBe("*");
    expect(open.headers.get("Access-Control-Allow-Credentials")).toBeNull();
  });

  it.each(["https://app.example.com/", "app.example.com", "null", "https://*.example.com/x", ""])(
    "are no %j",
    (one) => {
      expect(() => surfaceOf(system, { cors: { origins: [one] } })).toThrow(/expected origins such as/);
    },
  );

  it.each([true, {}, { origins: "https://app.example.com" }, "https://app.example.com"])(
    "are no list in %j",
    (cors) => {
      const wanted = `cors: expected { origins: ["https://app.example.com"] }, got ${JSON.stringify(cors)}`;
      expect(() => surfaceOf(system, { cors } as unknown as Partial<HttpOptions>)).toThrow(wanted);
    },
  );
});

describe("a clock by URL", () => {
  const headers = bearer(secrets.run);

  it("runs one consumer, once for each message, however many run it at the same time", async () => {
    await system.settle();
    handled.length = 0;
    const sent = Array.from({ length: 40 }, (_, n) => `order ${n}`);
    for (const orderId of sent) await system.publish("orders.placed", { orderId });
    const all = await Promise.all(Array.from({ length: 4 }, () => ask("POST", "/run/billing", { headers })));
    expect(all.map(({ status }) => status)).toEqual([200, 200, 200, 200]);
    const reports = all.map(
      ({ answer }) => (answer as { consumers: { consumer: string; acked: number }[] }).consumers[0],
    );
    expect(reports.map((report) => report?.consumer)).toEqual(Array(4).fill("billing"));
    expect(reports.reduce((sum, report) => sum + (report?.acked ?? 0), 0)).toBe(40);
    expect(handled.map((data) => (data as { orderId: string }).orderId).toSorted()).toEqual(sent.toSorted());
  });

  it("asks which where two consumers have the name", async () => {
    const { status, answer } = await ask("POST", "/run/same", { headers });
    expect(status).toBe(400);
    expect(answer.detail).toMatch(/each of the streams "IMAGES", "ORDERS": say which, by \?stream=/);
    const { answer: report } = await ask("POST", "/run/same?stream=IMAGES", { headers });
    expect(report).toMatchObject({ consumers: [{ stream: "IMAGES", consumer: "same" }] });
    expect((await ask("POST", "/run/same?stream=NOPE", { headers })).status).toBe(404);
    expect((await ask("POST", "/run/billing?force=1", { headers })).status).toBe(400);
    expect((await ask("POST", "/release?force=1", { headers })).status).toBe(400);
  });

  it("releases what is due", async () => {
    const { status, answer } = await ask("POST", "/release", { headers });
    expect({ status, answer }).toMatchObject({ status: 200, answer: { streams: [{ stream: "ORDERS" }] } });
  });
});

describe("GET /health", () => {
  it("is there for everybody, touches nothing, and tells nothing", async () => {
    const connect = () => Promise.reject(new Error("touched"));
    const { status, answer } = await ask("GET", "/health", { connect, tokens: () => ({}) });
    expect({ status, answer }).toEqual({ status: 200, answer: { status: "ok" } });
  });

  it("tells of streams, consumers and the server with a token, and of what is not there", async () => {
    const headers = bearer(secrets.run);
    const well = await ask("GET", "/health", { headers });
    expect(well).toMatchObject({
      status: 200,
      answer: {
        status: "ok",
        server: { version: expect.stringMatching(/^2\./) },
        streams: expect.arrayContaining(
          ["ORDERS", "IMAGES", "DEAD", "SORTIE_ATTEMPTS", "SORTIE_SCHEDULES"].map((name) => {
            return { name, messages: expect.any(Number), bytes: expect.any(Number) };
          }),
        ),
        consumers: [
          { stream: "ORDERS", name: "billing", lag: expect.any(Number), unsettled: expect.any(Number) },
          {},
          {},
        ],
      },
    });
    await using bare = await startSystem({ streams: [], bindings: [] });
    const ill = await ask("GET", "/health", { headers, connect: () => bare.connect() });
    expect(ill).toMatchObject({
      status: 503,
      answer: {
        status: "failing",
        streams: expect.arrayContaining([{ name: "ORDERS", error: expect.stringContaining("stream not found") }]),
        consumers: [{ name: "billing", error: expect.stringContaining("not found") }, {}, {}],
      },
    });
    await bare.server.kill();
    const away = await ask("GET", "/health", { headers, connect: () => bare.connect() });
    expect(away).toMatchObject({ status: 503, answer: { type: "urn:sortie:problem:connection-failed" } });
    expect(Number(away.headers.get("Retry-After"))).toBeGreaterThan(0);
  });

  it("misses a stream of Sortie's own that the app does not go without", async () => {
    await using lame = await startSystem(app);
    for (const name of ["SORTIE_ATTEMPTS", "SORTIE_SCHEDULES"]) await lame.jsm.streams.delete(name);
    const { status, answer } = await ask("GET", "/health", {
      headers: bearer(secrets.run),
      connect: () => lame.connect(),
    });
    const failing = (answer.streams as { name: string; error?: string }[]).filter(({ error }) => error);
    expect({ status, failing: failing.map(({ name }) => name) }).toEqual({
      status: 503,
      failing: ["SORTIE_ATTEMPTS", "SORTIE_SCHEDULES"],
    });
  });
});

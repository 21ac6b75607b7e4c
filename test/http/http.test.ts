import { headers as natsHeaders } from "@nats-io/nats-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import * as z from "zod";
import { createHttp } from "../../src/http/http.ts";
import { createApp, defineStream } from "../../src/index.ts";
import { connect, disconnect } from "../../src/nats/connection.ts";
import { silent, startPeer } from "../support/peers.ts";
import { type System, startSystem } from "../support/system.ts";

const orders = defineStream("ORDERS", {
  subjects: {
    "orders.placed": z.object({ orderId: z.string(), items: z.array(z.object({ price: z.number() })).default([]) }),
    "notes.*": z.string(),
    "any.x": z.json(),
    "strict.x": z.strictObject({}),
  },
  captures: ["dead.>"],
});
const unapplied = defineStream("UNAPPLIED", { subjects: { "unapplied.x": z.string() } });
const app = createApp({ streams: [orders, unapplied] });

let system: System;
beforeAll(async () => {
  system = await startSystem(createApp({ streams: [orders] }));
});
afterAll(() => system[Symbol.asyncDispose]());

function httpWith(options: { url?: string; token?: string | undefined; ms?: number } = {}) {
  const { url = system.server.url, ms = 2_000 } = options;
  const token = "token" in options ? options.token : "s3cret";
  return createHttp(app, {
    connect: (_c, ms) => connect({ url }, ms),
    tokens: () => ({ publish: token, schedules: token }),
    remaining: () => ms,
  });
}

interface Asked {
  subject?: string;
  body?: string | Uint8Array<ArrayBuffer>;
  headers?: Record<string, string>;
  http?: ReturnType<typeof httpWith>;
  query?: string;
}

async function post({
  subject = "orders.placed",
  body = '{"orderId":"1"}',
  headers = {},
  http = httpWith(),
  query = "",
}: Asked = {}) {
  const response = await http.request(`/publish/${subject}${query}`, {
    method: "POST",
    headers: { Authorization: "Bearer s3cret", "Content-Type": "application/json", ...headers },
    body,
  });
  const text = await response.text();
  expect(text).not.toMatch(/s3cret| at .*\.ts:/); // neither a secret nor a stack
  return { status: response.status, headers: response.headers, answer: JSON.parse(text) as Record<string, unknown> };
}

const stored = async () => (await system.jsm.streams.info("ORDERS")).state.messages;

describe("POST /publish/{subject}", () => {
  it("stores the payload byte for byte and says where", async () => {
    const body = '{ "orderId": "é",  "big": 12345678901234567890 }';
    const { status, answer } = await post({ body });
    expect({ status, answer }).toEqual({
      status: 202,
      answer: { stream: "ORDERS", sequence: expect.any(Number), duplicate: false },
    });
    const message = await system.jsm.streams.getMessage("ORDERS", { seq: answer.sequence as number });
    expect(message?.subject).toBe("orders.placed");
    expect(message?.string()).toBe(body);
  });

  it.each([
    ["delay=1500", 1_500],
    ["delay=1s", 1_000],
    [`at=${encodeURIComponent(new Date(Date.now() + 3_600_000).toISOString())}`, undefined],
  ])("schedules a message for later: %s", async (query, ms) => {
    const before = Date.now();
    const { status, answer } = await post({ subject: "notes.later", body: `"${query}"`, query: `?${query}` });
    const { id, at } = (answer as { schedule: { id: string; at: string } }).schedule;
    expect(status).toBe(202);
    const due = Date.parse(at);
    if (ms !== undefined) expect(due - before).toBeGreaterThanOrEqual(ms);
    const waiting = await system.jsm.streams.getMessage("ORDERS", { last_by_subj: `sortie.schedule.ORDERS.${id}` });
    expect(waiting?.string()).toBe(`"${query}"`);
    if (ms === undefined) return;
    const released = () => system.jsm.streams.getMessage("ORDERS", { last_by_subj: "notes.later" });
    await expect.poll(async () => (await released())?.string()).toBe(`"${query}"`);
    expect((await released())?.header.get("Sortie-Id")).toBe(id);
    expect((await released())?.time.getTime()).toBeGreaterThanOrEqual(due);
  });

  it("schedules a message once for each Idempotency-Key, which names it", async () => {
    const asked = {
      subject: "notes.keyed",
      body: '"x"',
      query: "?delay=1h",
      headers: { "Idempotency-Key": "later-1" },
    };
    const [first, second] = [await post(asked), await post(asked)];
    expect(first.answer).toMatchObject({ schedule: { id: "later-1" } });
    expect(second).toMatchObject({ status: 202, answer: first.answer });
    expect(await post({ ...asked, body: '"y"' })).toMatchObject({
      status: 422,
      answer: { type: "urn:sortie:problem:idempotency-key-reused" },
    });
    const { state } = await system.jsm.streams.info("ORDERS", { subjects_filter: "sortie.schedule.ORDERS.later-1" });
    expect(state.subjects).toEqual({ "sortie.schedule.ORDERS.later-1": 1 });
  });

  it("stores a message once for each Idempotency-Key", async () => {
    const headers = { "Idempotency-Key": "key-1" };
    const first = await post({ headers });
    const second = await post({ headers });
    expect(second.answer).toEqual({ ...first.answer, duplicate: true });
    expect((await post({ headers: { "Idempotency-Key": "key-2" } })).answer.duplicate).toBe(false);
  });

  it("tells another message under the same key from the same one again", async () => {
    const headers = { "Idempotency-Key": "key-3" };
    const { answer } = await post({ headers });
    for (const asked of [{ body: '{"orderId":"2"}' }, { subject: "notes.x", body: '"2"' }]) {
      const refused = await post({ ...asked, headers });
      expect(refused).toMatchObject({
        status: 422,
        answer: {
          type: "urn:sortie:problem:idempotency-key-reused",
          detail: expect.stringContaining(`sequence ${answer.sequence}`),
        },
      });
    }
    await system.jsm.streams.deleteMessage("ORDERS", answer.sequence as number);
    expect((await post({ headers })).answer).toMatchObject({ duplicate: true }); // handled and gone: nobody can tell
  });

  it("takes subjects of a pattern, and JSON under its other names", async () => {
    expect(
      (
        await post({
          subject: "notes.eu",
          body: '"hi"',
          headers: { "Content-Type": "application/vnd.x+json; charset=utf-8" },
        })
      ).status,
    ).toBe(202);
    expect((await post({ headers: { "Content-Type": "application/json ; charset=utf-8" } })).status).toBe(202);
    expect((await post({ headers: { "Content-Type": "application/json x" } })).status).toBe(415);
  });

  it.each<[string, number, string, Asked, RegExp]>([
    ["no token", 401, "unauthorized", { headers: { Authorization: "" } }, /Authorization: Bearer <token>/],
    ["a wrong token", 401, "unauthorized", { headers: { Authorization: "Bearer s3cre" } }, /Bearer/],
    ["another scheme", 401, "unauthorized", { headers: { Authorization: "Basic s3cret" } }, /Bearer/],
    [
      "an unknown subject",
      404,
      "unknown-subject",
      { subject: "orders.cancelled" },
      /"orders.cancelled".*orders.placed, notes.\*/,
    ],
    ["a subject that is only captured", 404, "unknown-subject", { subject: "dead.x" }, /No stream of this app/],
    ["a wildcard", 404, "unknown-subject", { subject: "notes.*" }, /No stream/],
    ["a subject with spaces", 404, "unknown-subject", { subject: "notes.a%20b" }, /No stream/],
    ["a subject with a line break", 404, "unknown-subject", { subject: "notes.a%0D%0APUB" }, /No stream/],
    [
      "another media type",
      415,
      "unsupported-media-type",
      { headers: { "Content-Type": "text/plain" } },
      /application\/json, got text\/plain/,
    ],
    [
      "half a character",
      400,
      "invalid-request",
      { subject: "notes.%ED%A0%80" },
      /path in UTF-8 with its escapes whole/,
    ],
    ["half an escape", 400, "invalid-request", { subject: "notes.%2" }, /path in UTF-8/],
    ["a malformed key", 400, "invalid-request", { headers: { "Idempotency-Key": "a b" } }, /visible ASCII/],
    ["a key that is too long", 400, "invalid-request", { headers: { "Idempotency-Key": "k".repeat(256) } }, /1 to 255/],
    ["an unknown query parameter", 400, "invalid-request", { query: "?later=30s" }, /but delay or at, got later/],
    [
      "a delay and a time",
      400,
      "invalid-request",
      { query: "?delay=1s&at=2030-01-01T00:00:00Z" },
      /either delay or at/,
    ],
    ["a malformed delay", 400, "invalid-option", { query: "?delay=soon" }, /a duration such as "30s".*got "soon"/],
    ["a malformed time", 400, "invalid-option", { query: "?at=tomorrow" }, /RFC 3339 time with its offset.*"tomorrow"/],
    [
      "a time without end",
      422,
      "schedule-refused",
      { query: "?at=9999-01-01T00:00:00Z" },
      /expected a time within ten years/,
    ],
    ["no JSON", 422, "invalid-payload", { body: "{" }, /not JSON in UTF-8/],
    ["no body", 422, "invalid-payload", { body: "" }, /not JSON in UTF-8 \(0 bytes\)/],
    [
      "bytes that are not UTF-8",
      422,
      "invalid-payload",
      { body: new Uint8Array([0x22, 0xff, 0x22]) },
      /not JSON in UTF-8/,
    ],
    [
      "a payload above a megabyte",
      413,
      "payload-too-large",
      { subject: "notes.x", body: `"${"x".repeat(1024 * 1024)}"` },
      /a body of 1048576 bytes at most; nats-server's own max_payload leaves a message 1044480, headers included/,
    ],
    [
      "a payload above what the server takes with its headers",
      413,
      "payload-too-large",
      { subject: "notes.x", body: `"${"x".repeat(1024 * 1024 - 4)}"`, headers: { "Idempotency-Key": "k".repeat(200) } },
      /max_payload/,
    ],
    [
      "a stream that was never applied",
      503,
      "stream-missing",
      { subject: "unapplied.x", body: '"x"' },
      /npx sortie apply/,
    ],
  ])("refuses %s with %d %s, and stores nothing", async (_, status, type, asked, detail) => {
    const before = await stored();
    const got = await post(asked);
    expect(got).toMatchObject({
      status,
      answer: {
        type: `urn:sortie:problem:${type}`,
        status,
        title: expect.any(String),
        detail: expect.stringMatching(detail),
      },
    });
    expect(got.headers.get("Content-Type")).toBe("application/problem+json");
    if (status === 401) expect(got.headers.get("WWW-Authenticate")).toMatch(/^Bearer/);
    if (status === 503) expect(Number(got.headers.get("Retry-After"))).toBeGreaterThan(0);
    expect(await stored()).toBe(before);
  });

  it("names every failing path of a payload", async () => {
    const { status, answer } = await post({ body: '{"items":[{"price":1},{"price":"2"}]}' });
    expect(status).toBe(422);
    expect(answer.errors).toEqual([
      { path: "orderId", message: expect.stringContaining("expected string") },
      { path: "items[1].price", message: expect.stringContaining("expected number") },
    ]);
  });

  it("names some of many failing paths, each in some of its words", async () => {
    const items = `{"orderId":"1","items":[${"1,".repeat(9_999)}1]}`;
    const { answer } = await post({ body: items });
    expect(answer.errors).toHaveLength(21);
    expect((answer.errors as object[]).at(-1)).toEqual({ path: "", message: "… and 9980 more" });
    const { answer: long } = await post({ subject: "strict.x", body: `{"${"k".repeat(100_000)}":1}` });
    for (const one of [answer, long]) expect(JSON.stringify(one).length).toBeLessThan(10_000);
  });

  it("takes what is nested 512 deep, and nothing deeper", async () => {
    const nested = (depth: number) => `${"[".repeat(depth)}"[[\\"[["${"]".repeat(depth)}`;
    const headers = { "Idempotency-Key": "deep" };
    const query = "?delay=1h";
    for (let n = 0; n < 2; n++)
      expect((await post({ subject: "any.x", body: nested(512), headers, query })).status).toBe(202);
    for (const depth of [513, 100_000])
      expect(await post({ subject: "any.x", body: nested(depth) })).toMatchObject({
        status: 422,
        answer: { type: "urn:sortie:problem:invalid-payload", detail: expect.stringContaining("512 levels at most") },
      });
    const json = { Authorization: "Bearer s3cret", "Content-Type": "application/json" };
    for (const field of ["data", "in"]) {
      const body = `{"subject":"any.x","data":1,"in":"1h","${field}":${nested(100_000)}}`;
      expect((await httpWith().request("/schedules", { method: "POST", headers: json, body })).status).toBe(400);
    }
    // what somebody else has put there is listed without what cannot be printed
    const stored = { subject: "sortie.schedule.ORDERS.foreign", headers: natsHeaders() };
    stored.headers.set("Nats-Schedule", `@at ${new Date(Date.now() + 3_600_000).toISOString()}`);
    stored.headers.set("Nats-Schedule-Target", "any.x");
    stored.headers.set("Sortie-Id", "foreign");
    const connection = await system.connect();
    await connection.request(stored.subject, nested(100_000), { headers: stored.headers, timeout: 2_000 });
    disconnect(connection);
    const listed = await httpWith().request("/schedules?stream=ORDERS", { headers: json });
    expect(listed.status).toBe(200);
    expect((await listed.json()) as object).toMatchObject({
      schedules: expect.arrayContaining([expect.objectContaining({ id: "foreign" })]),
    });
  });

  it("waits for a body no longer than a request may take, and refuses one that breaks off", async () => {
    const cancelled = Promise.withResolvers<void>();
    const endless = new ReadableStream<Uint8Array>({
      pull: () => new Promise(() => {}),
      cancel: () => cancelled.resolve(),
    });
    const broken = new ReadableStream<Uint8Array>({ pull: (controller) => controller.error(new Error("reset")) });
    const http = httpWith({ ms: 30 });
    for (const [body, status] of [
      [endless, 408],
      [broken, 400],
    ] as const) {
      const headers = { Authorization: "Bearer s3cret", "Content-Type": "application/json" };
      const asked = { method: "POST", headers, body, duplex: "half" } as RequestInit;
      expect((await http.request("/publish/notes.x", asked)).status).toBe(status);
    }
    await cancelled.promise;
  });

  it("tells which setting of NATS is wrong, and nothing of what stands in it", async () => {
    for (const url of ["nats://nats.internal.example:4222", "ws://u:p%zz@nats.internal.example"]) {
      const { status, answer } = await post({ http: httpWith({ url }) });
      expect({ status, detail: answer.detail }).toEqual({
        status: 503,
        detail: "NATS_URL is not as expected; the function's log says why",
      });
    }
  });

  it("reads the scheme in any case, the token in its own, and no body without it", async () => {
    expect((await post({ headers: { Authorization: "bearer s3cret" } })).status).toBe(202);
    expect((await post({ headers: { Authorization: "Bearer S3CRET" } })).status).toBe(401);
    expect((await post({ headers: { Authorization: "" }, body: `"${"x".repeat(2 * 1024 * 1024)}"` })).status).toBe(401);
  });

  it("says nothing of an error that is not its own", async () => {
    const http = createHttp(app, {
      connect: () => Promise.reject(new Error("internals s3cret")),
      tokens: () => ({ publish: "s3cret" }),
    });
    expect(await post({ http })).toMatchObject({
      status: 500,
      answer: { type: "urn:sortie:problem:internal", detail: "The function's log has the error" },
    });
  });

  it("refuses a subject that another stream has taken", async () => {
    const taken = defineStream("TAKEN", { subjects: { "notes.taken": z.string() } });
    const http = createHttp(createApp({ streams: [taken] }), {
      connect: (_c, ms) => connect({ url: system.server.url }, ms),
      tokens: () => ({ publish: "s3cret" }),
    });
    expect(await post({ http, subject: "notes.taken", body: '"x"' })).toMatchObject({
      status: 503,
      answer: { detail: expect.stringContaining("expected stream does not match") },
    });
  });

  it("is closed where no token is set", async () => {
    for (const token of [undefined, ""]) {
      const { status, answer } = await post({ http: httpWith({ token }), headers: { Authorization: "Bearer " } });
      expect({ status, type: answer.type }).toEqual({ status: 503, type: "urn:sortie:problem:not-configured" });
    }
  });

  it("answers in time where NATS does not", async () => {
    await using peer = await startPeer(silent);
    const started = Date.now();
    const { status, answer, headers } = await post({ http: httpWith({ url: peer.url }) });
    expect({ status, type: answer.type }).toEqual({ status: 503, type: "urn:sortie:problem:connection-failed" });
    expect(answer.detail).not.toContain(new URL(peer.url).host);
    expect(headers.get("Retry-After")).toMatch(/^([5-9]|10)$/); // not the same for all callers, who would be back at once
    expect(Date.now() - started).toBeLessThan(2_000);
  });

  it("says when the stream is full, and stores the message later", async () => {
    await system.jsm.streams.add({ name: "FULL", subjects: ["full"], max_msgs: 1, discard: "new" as never });
    const full = defineStream("FULL", { subjects: { full: z.string() } });
    const http = createHttp(createApp({ streams: [full] }), {
      connect: (_c, ms) => connect({ url: system.server.url }, ms),
      tokens: () => ({ publish: "s3cret" }),
    });
    expect((await post({ http, subject: "full", body: '"1"' })).status).toBe(202);
    const refused = await post({ http, subject: "full", body: '"2"' });
    expect(refused).toMatchObject({
      status: 503,
      answer: {
        type: "urn:sortie:problem:stream-refused",
        detail: expect.stringContaining("maximum messages exceeded"),
      },
    });
    await system.jsm.streams.purge("FULL");
    expect((await post({ http, subject: "full", body: '"2"' })).status).toBe(202);
  });
});

describe("anything else", () => {
  it("is a problem as well", async () => {
    const http = httpWith();
    const get = await http.request("/publish/orders.placed");
    expect({ status: get.status, allow: get.headers.get("Allow"), type: get.headers.get("Content-Type") }).toEqual({
      status: 405,
      allow: "POST",
      type: "application/problem+json",
    });
    const nowhere = await http.request("/nowhere");
    expect(nowhere.status).toBe(404);
    expect(await nowhere.json()).toMatchObject({ type: "urn:sortie:problem:not-found" });
  });
});

import type { StandardJSONSchemaV1 } from "@standard-schema/spec";
import type { App } from "../app.ts";
import { overlaps } from "../define/subject.ts";
import type { Schema } from "../schema.ts";
import { type Grant, opens, type Scope } from "./access.ts";
import { type ProblemCode, problemCodes, statusOf, typeOf } from "./problem.ts";
import { isPublic } from "./subjects.ts";

type Json = Record<string, unknown>;

const ref = (kind: string, name: string) => ({ $ref: `#/components/${kind}/${name}` });
const json = (schema: unknown) => ({ content: { "application/json": { schema } } });
const text = { type: "string" };
const object = (properties: Json, ...required: string[]) => ({
  type: "object",
  properties,
  ...(required.length > 0 && { required }),
});
const parameter = (where: string, name: string, description: string, schema: Json = text) => ({
  name,
  in: where,
  description,
  schema,
  ...(where === "path" && { required: true }),
});

const always: ProblemCode[] = ["invalid-request", "unauthorized", "forbidden", "too-many-requests", "not-configured"];

/** One operation: what it is called, what it answers with, and the problems that are its own. */
function operation(
  operationId: string,
  summary: string,
  [status, description, schema]: readonly [status: number, description: string, schema?: unknown],
  problems: readonly ProblemCode[],
  { responses = {}, ...more }: Json & { responses?: Json } = {},
): Json {
  const codes = [...always, ...problems];
  const statuses = [...new Set(codes.map(statusOf))].toSorted((a, b) => a - b);
  return {
    operationId,
    summary,
    security: [{ bearer: [] }],
    responses: {
      [status]: { description, ...json(schema ?? { type: "object" }) },
      ...Object.fromEntries(statuses.map((one) => [one, ref("responses", "Problem")])),
      ...responses,
    },
    ...more,
  };
}

/** The OpenAPI 3.1 document of an app's HTTP surface: of all of it, or of what these grants open. */
export function openApiOf(app: Pick<App, "name" | "streams" | "bindings">, grants?: readonly Grant[]): Json {
  const { name = "sortie", streams, bindings } = app;
  const isOpen = (scope: Scope, subject?: string) => !grants || opens(grants, scope, subject, overlaps);
  const subjects = streams.flatMap(({ schemas, schedules }) =>
    Object.entries(schemas)
      .filter(([subject]) => isPublic(app, subject))
      .map(([subject, schema]) => ({ subject, schema, isTimed: schedules !== false })),
  );
  const key = parameter("header", "Idempotency-Key", "The message's id: it is stored once", {
    type: "string",
    pattern: "^[\\x21-\\x7e]{1,255}$",
  });
  const later = [
    parameter("query", "delay", "Released so much later: milliseconds, or as in 30s"),
    parameter("query", "at", "Released then", { type: "string", format: "date-time" }),
  ];
  const streamOf = (names: readonly string[]) =>
    parameter("query", "stream", "Which, where two streams have one of this name", { ...text, enum: names });
  const stream = streamOf(streams.filter(({ schedules }) => schedules !== false).map(({ name }) => name));
  const stored = object({ stream: text, sequence: { type: "integer" }, duplicate: { type: "boolean" } }, "stream");
  const scheduled = object({ schedule: ref("schemas", "Schedule") }, "schedule");

  const published = subjects.filter(({ subject }) => isOpen("publish", subject));
  const publishing = published.map(({ subject, schema, isTimed }, at) => {
    const wild: Json[] = [];
    const path = subject
      .split(".")
      .map((token, n) => {
        if (token !== "*" && token !== ">") return encodeURIComponent(token);
        wild.push(parameter("path", `token${n}`, token === "*" ? "One token" : "One token or more, with dots between"));
        return `{token${n}}`;
      })
      .join(".");
    const post = operation(
      `publish${at}`,
      `Publishes a message to ${subject}`,
      [202, "It is stored", { anyOf: [stored, scheduled] }],
      ["unknown-subject", "request-timeout", "payload-too-large", "unsupported-media-type", "invalid-payload"],
      {
        security: [{ bearer: [] }, { webhook: [] }],
        parameters: [...wild, key, ...(isTimed ? later : [])],
        requestBody: { required: true, ...json(inputOf(schema, subject)) },
      },
    );
    return [`/publish/${path}`, { post }];
  });

  const run = (path: string, what: string, more: Json, ...problems: ProblemCode[]) => {
    const id = path === "/release" ? "release" : "run";
    const done = [200, "Its report"] as const;
    const both: readonly ProblemCode[] = ["invocation-failed", "method-not-allowed", ...problems];
    return {
      post: operation(id, what, done, both, more),
      get: operation(`${id}ByCron`, `${what}, for CRON_SECRET alone`, done, both, more),
    };
  };
  const consumers = [...new Set(bindings.map(({ consumer }) => consumer.name))];
  const named = [
    parameter("path", "consumer", "Its name", { ...text, ...(consumers.length > 0 && { enum: consumers }) }),
    streamOf([...new Set(bindings.map(({ consumer }) => consumer.stream.name))]),
  ];
  const one = [parameter("path", "id", "The schedule's id"), stream];
  const change = (what: string, problems: readonly ProblemCode[]) =>
    operation(
      `${what}Schedule`,
      `${what} a schedule`,
      [200, "What became of it", object({ id: text, result: text }, "id", "result")],
      ["schedule-unknown", ...problems],
      { parameters: one },
    );
  const data = { description: "What its subject's schema takes" };
  const invocations: Json = {
    ...(consumers.length > 0 && {
      "/run/{consumer}": run("/run", "One invocation of a consumer", { parameters: named }, "consumer-unknown"),
    }),
    "/release": run("/release", "One invocation that releases what is due", {}),
  };
  const scheduling: Json = {
    "/schedules": {
      get: operation(
        "listSchedules",
        "Those that wait",
        [200, "A page", object({ schedules: { type: "array", items: ref("schemas", "Schedule") }, next: text })],
        [],
        {
          parameters: [
            stream,
            parameter("query", "prefix", "Only ids that begin so"),
            ...["from", "to"].map((name) => parameter("query", name, "A time", { ...text, format: "date-time" })),
            parameter("query", "limit", "The most of them", { type: "integer", minimum: 1, maximum: 500 }),
            parameter("query", "after", "The next of the page before"),
          ],
        },
      ),
      post: operation(
        "schedule",
        "Schedules a message, once or time and again",
        [201, "It is made", scheduled],
        ["unknown-subject", "request-timeout", "payload-too-large", "unsupported-media-type", "schedule-refused"],
        {
          requestBody: {
            required: true,
            ...json(
              object(
                {
                  subject: { ...text, examples: subjects.map(({ subject }) => subject) },
                  data,
                  ...Object.fromEntries(
                    "id at cron timeZone overlap catchUp jitter until".split(" ").map((name) => [name, text]),
                  ),
                  ...Object.fromEntries(["in", "every"].map((name) => [name, { type: ["string", "number"] }])),
                },
                "subject",
                "data",
              ),
            ),
          },
        },
      ),
    },
    "/schedules/{id}": {
      get: operation("getSchedule", "What is known of one", [200, "It", scheduled], ["schedule-unknown"], {
        parameters: one,
      }),
      delete: change("cancel", ["already-fired"]),
    },
    "/schedules/{id}/fire": { post: change("fire", ["already-fired"]) },
    "/schedules/{id}/pause": { post: change("pause", []) },
    "/schedules/{id}/resume": { post: change("resume", []) },
  };
  const all = { type: "array", items: { type: "object" } };
  const health = object(
    { status: { enum: ["ok", "failing"] }, server: { type: "object" }, streams: all, consumers: all },
    "status",
  );

  return {
    openapi: "3.1.0",
    info: { title: name, version: "1" },
    paths: {
      ...Object.fromEntries(publishing),
      ...(isOpen("run") && invocations),
      ...(isOpen("schedules") && scheduling),
      "/health": {
        get: operation("health", "Whether it is there; with a token, how it is", [200, "It is", health], [], {
          security: [{}, { bearer: [] }],
          responses: {
            503: {
              description: "Something is missing, or it cannot be looked at",
              content: { ...json(health).content, "application/problem+json": { schema: ref("schemas", "Problem") } },
            },
          },
        }),
      },
      "/openapi.json": { get: operation("openapi", "This document", [200, "It"], []) },
    },
    components: {
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer" },
        webhook: {
          type: "apiKey",
          in: "header",
          name: "webhook-signature",
          description: "Standard Webhooks, with webhook-id and webhook-timestamp beside it",
        },
      },
      responses: {
        Problem: {
          description: "A problem (RFC 9457)",
          content: { "application/problem+json": { schema: ref("schemas", "Problem") } },
        },
      },
      schemas: {
        Problem: object(
          {
            type: { enum: problemCodes.map(typeOf) },
            title: text,
            status: { type: "integer" },
            detail: text,
            errors: { type: "array", items: object({ path: text, message: text }, "path", "message") },
          },
          "type",
          "title",
          "status",
          "detail",
        ),
        Schedule: object(
          { id: text, stream: text, at: { ...text, format: "date-time" }, state: text, data },
          "id",
          "at",
        ),
      },
    },
  };
}

/** What a schema takes, where it can say so in JSON Schema (Standard JSON Schema); anything, where it cannot. */
function inputOf(schema: Schema, subject: string): Json {
  const standard = schema["~standard"] as Partial<StandardJSONSchemaV1.Props>;
  try {
    const { $schema, ...input } = standard.jsonSchema?.input({ target: "draft-2020-12" }) ?? {};
    if ($schema === undefined || !JSON.stringify(input).includes('"$ref"')) return input;
    return { $id: `urn:sortie:subject:${encodeURIComponent(subject)}`, ...input }; // its references are to itself
  } catch {
    return {};
  }
}

import { Validator } from "@seriousme/openapi-schema-validator";
import { describe, expect, it } from "vitest";
import * as z from "zod";
import { accessIn, type Tokens } from "../../src/http/access.ts";
import { createHttp } from "../../src/http/http.ts";
import { openApiOf } from "../../src/http/openapi.ts";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { app } from "./surface.ts";

const Tree = z.object({
  name: z.string(),
  get children() {
    return z.array(Tree);
  },
});
const foreign = {
  "~standard": { version: 1, vendor: "none", validate: (value: unknown) => ({ value }) },
} as const;

describe("GET /openapi.json", () => {
  it("is an OpenAPI 3.1 document of the app's subjects and all routes", async () => {
    const document = openApiOf(app);
    const { valid, errors } = await new Validator().validate(structuredClone(document));
    expect(errors).toBeUndefined();
    expect(valid).toBe(true);
    expect(Object.keys(document.paths as object)).toEqual([
      "/publish/orders.placed",
      "/publish/orders.failed",
      "/publish/notes.{token1}",
      "/publish/images.{token1}.resize",
      "/run/{consumer}",
      "/release",
      "/schedules",
      "/schedules/{id}",
      "/schedules/{id}/fire",
      "/schedules/{id}/pause",
      "/schedules/{id}/resume",
      "/health",
      "/openapi.json",
    ]);
    expect(document).toMatchObject({
      info: { title: "surface" },
      paths: {
        "/publish/orders.placed": {
          post: {
            security: [{ bearer: [] }, { webhook: [] }],
            requestBody: {
              content: {
                "application/json": {
                  schema: {
                    type: "object",
                    required: ["orderId"], // what has a default need not be sent
                    properties: { orderId: { type: "string", minLength: 1, maxLength: 40 } },
                  },
                },
              },
            },
          },
        },
        "/run/{consumer}": { post: { parameters: [{ schema: { enum: ["billing", "same"] } }, {}] } },
      },
    });
  });

  it("tells a caller of what its tokens open, and says both of what /health answers", async () => {
    const pathsFor = async (setting: Tokens) => {
      const { grants } = await accessIn(setting);
      return Object.keys(openApiOf(app, grants).paths as object);
    };
    const open = ["/health", "/openapi.json"];
    expect(await pathsFor({ publish: "orders.placed,notes.*:token-0123456789" })).toEqual([
      "/publish/orders.placed",
      "/publish/notes.{token1}", // some of it
      ...open,
    ]);
    expect(await pathsFor({ run: "token-0123456789" })).toEqual(["/run/{consumer}", "/release", ...open]);
    expect(await pathsFor({ admin: "token-0123456789" })).toEqual(Object.keys(openApiOf(app).paths as object));
    const scheduling = await pathsFor({ schedules: "token-0123456789" });
    expect(scheduling.every((path) => /^.(schedules|health|openapi)/.test(path))).toBe(true);
    const { responses } = (openApiOf(app).paths as Record<string, { get: { responses: Record<string, object> } }>)[
      "/health"
    ]?.get ?? { responses: {} };
    expect(responses).toMatchObject({
      200: { content: { "application/json": {} } },
      503: { content: { "application/json": {}, "application/problem+json": {} } },
    });
  });

  it("tells of no subject that nobody can publish to", () => {
    const text = z.string();
    const log = defineStream("LOG", { subjects: { "log.*": text, "dead.log": text, "sortie.*": text, "*": text } });
    const consumer = defineConsumer(log, "one", { filter: "log.*", deadLetter: "dead.log" });
    const document = openApiOf(createApp({ streams: [log] }).on(consumer, () => {}));
    const publishing = Object.keys(document.paths as object).filter((path) => path.startsWith("/publish"));
    expect(publishing).toEqual(["/publish/log.{token1}", "/publish/{token0}"]);
    expect(JSON.stringify(document)).not.toMatch(/dead\.log|sortie\.\*/); // among examples neither
  });

  it("has every route that there is, and none that there is not", () => {
    const http = createHttp(app, {
      connect: () => Promise.reject(new Error("not asked for")),
      tokens: () => ({}),
      run: () => Promise.reject(new Error("not asked for")),
      release: () => Promise.reject(new Error("not asked for")),
    });
    const routes = http.routes
      .filter(({ method }) => method !== "ALL")
      .map(({ method, path }) => `${method.toLowerCase()} ${path.replace(/:(\w+)/g, "{$1}")}`);
    const paths = openApiOf(app).paths as Record<string, object>;
    const documented = Object.entries(paths).flatMap(([path, item]) =>
      Object.keys(item).map((method) => `${method} ${path.replace(/^\/publish\/.*/, "/publish/{subject}")}`),
    );
    expect(new Set(documented)).toEqual(new Set(routes));
  });

  it("has schemas that refer to themselves, and anything for those that cannot say what they take", async () => {
    const stream = defineStream("TREES", {
      subjects: { "trees.grown": Tree, "trees.at": z.object({ at: z.date() }), "trees.other": foreign },
    });
    const dead = defineStream("DEAD", { captures: ["dead.>"] });
    const document = openApiOf(
      createApp({ streams: [stream, dead] }).on(defineConsumer(stream, "one", { deadLetter: "dead.one" }), () => {}),
    );
    expect((await new Validator().validate(structuredClone(document))).errors).toBeUndefined();
    const taken = (subject: string) =>
      (document.paths as Record<string, { post: { requestBody: { content: Record<string, { schema: object }> } } }>)[
        `/publish/${subject}`
      ]?.post.requestBody.content["application/json"]?.schema;
    expect(taken("trees.grown")).toMatchObject({
      $id: "urn:sortie:subject:trees.grown",
      properties: { children: { items: { $ref: "#" } } },
    });
    expect([taken("trees.at"), taken("trees.other")]).toEqual([{}, {}]);
  });
});

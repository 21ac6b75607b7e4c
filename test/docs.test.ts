import { execFileSync } from "node:child_process";
import { existsSync, globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { beforeAll, describe, expect, it, vi } from "vitest";
import manifest from "../package.json" with { type: "json" };
import type { App } from "../src/app.ts";
import { createSchedules } from "../src/schedule/schedules.ts";
import { startSystem } from "./support/system.ts";

const pages = ["README.md", "AGENTS.md", "CHANGELOG.md", ...globSync("docs/**/*.md")];
const blocks = (page: string, language: string) =>
  [...readFileSync(page, "utf8").matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, "gm"))].map(
    ([, code]) => code ?? "",
  );

describe("the documentation", () => {
  const folder = ".cache/docs";
  const snippets = pages.flatMap((page) =>
    blocks(page, "ts").map((code, n) => ({ file: join(folder, `${page.replaceAll("/", "-")}-${n}.ts`), code })),
  );
  beforeAll(() => {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    for (const { file, code } of snippets) writeFileSync(file, code);
  });

  it("has snippets that compile", () => {
    expect(snippets.length).toBeGreaterThan(0);
    const config = join(folder, "tsconfig.json");
    writeFileSync(config, JSON.stringify({ extends: "../../tsconfig.json", include: ["*.ts"] }));
    expect(() => execFileSync("tsc", ["-p", config], { encoding: "utf8" })).not.toThrow();
  });

  // each of these pages has one that is a whole app: it is applied, and handles a message of its own
  it.each([
    ["batches.md-0", "clicks.seen", { page: "/", at: "2030-01-01T00:00:00Z" }],
    ["idempotency.md-0", "payments.due", { order: "1", cents: 100 }],
    ["limits.md-0", "mails.send", { to: "a@example.com", tenant: "one" }],
    ["continuation.md-1", "mails.send", { to: "a@example.com" }],
  ])("docs/%s, a snippet, runs", async (snippet, subject, payload) => {
    vi.stubGlobal("fetch", async () => Response.json({ refused: [] }));
    vi.spyOn(console, "log").mockReturnValue();
    const { app }: { app: App } = await import(join(process.cwd(), folder, `docs-${snippet}.ts`));
    await using system = await startSystem(app);
    await system.publish(subject, payload);
    expect((await system.invoke()).consumers).toMatchObject([{ pulled: 1, acked: 1, ended: "drained" }]);
    vi.restoreAllMocks();
    vi.unstubAllGlobals();
  });

  it("docs/schedules.md-0, a snippet, schedules and cancels, and another one lists", async () => {
    const load = (n: number) => import(join(process.cwd(), folder, `docs-schedules.md-${n}.ts`));
    const { app }: { app: App } = await load(0);
    const { extend }: { extend(user: string): Promise<void> } = await load(1);
    await using system = await startSystem(app);
    vi.stubEnv("NATS_URL", system.server.url);
    const said = vi.spyOn(console, "log").mockReturnValue();
    const schedules = createSchedules(await system.connect(), app.streams);
    await system.publish("trials.begun", { user: "ann" });
    await system.invoke();
    await extend("ann");
    expect((await schedules.get("trial of ann"))?.at.getTime()).toBeGreaterThan(Date.now() + 29 * 86_400_000);
    await system.publish("trials.paid", { user: "ann" });
    await system.invoke();
    expect(await schedules.get("trial of ann")).toMatchObject({ state: "cancelled" });
    expect(await schedules.get("counting")).toMatchObject({ recurring: { overlap: "skip" } });
    expect(said).toHaveBeenCalledWith([]); // none ends within a day
    vi.restoreAllMocks();
    vi.unstubAllEnvs();
  });

  it.each(pages)("%s names only files that exist", (page) => {
    const links = [...readFileSync(page, "utf8").matchAll(/\]\((?!https?:)([^)#]+)/g)].map(([, path]) => path ?? "");
    expect(links.filter((path) => !existsSync(join(dirname(page), path)))).toEqual([]);
  });

  it.each(pages)("%s names only npm scripts that exist", (page) => {
    const named = [...readFileSync(page, "utf8").matchAll(/`npm (?:run )?([a-z:]+)/g)].map(
      ([, script]) => script ?? "",
    );
    const known = Object.keys(manifest.scripts);
    expect(named.filter((script) => !known.includes(script))).toEqual([]);
  });

  it("keeps the README short", () => {
    expect(readFileSync("README.md", "utf8").split("\n").length).toBeLessThanOrEqual(120);
  });

  it("shows a publish that the sample takes", async () => {
    const { orders } = await import("../functions/orders.ts");
    const curl = blocks("README.md", "sh").find((code) => code.startsWith("curl")) ?? "";
    const payload: unknown = JSON.parse(/-d '(.*)'/.exec(curl)?.[1] ?? "");
    expect(orders.schemas["orders.placed"].safeParse(payload).success).toBe(true);
    expect(curl).toContain("/publish/orders.placed");
  });
});

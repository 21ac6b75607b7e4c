import { execFile } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, it } from "vitest";

// docs/deploy/cloudflare.md, followed up to the login.
const page = readFileSync("docs/deploy/cloudflare.md", "utf8");
const blocks = (language: string) =>
  [...page.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, "gm"))].map(([, code]) => code ?? "");
const run = promisify(execFile);

it("its Worker with a hub deploys dry, and serves the Env that wrangler makes of the settings, as the sample does", {
  timeout: 180_000, // wrangler starts twice
}, async () => {
  const folder = ".cache/deploying";
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const [settings = "", hub = ""] = blocks("toml");
  writeFileSync(join(folder, "wrangler.toml"), `${settings}\n${hub}`);
  const withHub = blocks("ts")[1] ?? "";
  writeFileSync(join(folder, "worker.ts"), withHub.replace(/interface Env \{[\s\S]*?\n\}\n/, "")); // wrangler's own
  cpSync("functions", join(folder, "functions"), { recursive: true });
  writeFileSync(
    join(folder, "serving.ts"),
    `import sample from "./functions/worker.ts";
     import withHub from "./worker.ts";
     const [one, other]: ExportedHandler<Env>[] = [sample, withHub];
     export default [one, other];`,
  );
  const compilerOptions = { types: [] };
  writeFileSync(
    join(folder, "tsconfig.json"),
    JSON.stringify({ extends: "../../tsconfig.json", compilerOptions, include: ["*.ts", "functions/*.ts"] }),
  );
  const env = { ...process.env, WRANGLER_SEND_METRICS: "false", CI: "1" };
  const wrangler = (...args: string[]) => run("wrangler", args, { cwd: folder, env });
  const [deployed] = await Promise.all([
    wrangler("deploy", "--dry-run", "--outdir", "build"),
    wrangler("types").then(() => run("tsc", ["-p", folder])),
  ]);
  expect(deployed.stdout).toContain("env.HUB (Hub)");
  expect(readFileSync(join(folder, "worker-configuration.d.ts"), "utf8")).toContain("SORTIE_PUBLISH_TOKEN: string");
});

it("the commands of the page are those that the test runs, and its crons are those of the code", () => {
  const commands = blocks("sh").join("\n");
  for (const command of ["npx wrangler types", "npx wrangler deploy --dry-run", "npx wrangler secret put"])
    expect(commands).toContain(command);
  const crons = /^crons = (.*)$/m.exec(blocks("toml")[0] ?? "")?.[1] ?? "";
  for (const cron of JSON.parse(crons) as string[]) expect(blocks("ts")[0]).toContain(`"${cron}":`);
});

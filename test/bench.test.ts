import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { expect, it } from "vitest";

const bench = (...args: string[]) =>
  promisify(execFile)(process.execPath, ["bench/main.ts", ...args], {
    env: { ...process.env, CI: "1" },
  });

it("npm run bench measures a section by itself, without colours where nobody sees them", {
  timeout: 60_000,
}, async () => {
  const { stdout, stderr } = await bench("--quick", "--only", "workerd");
  expect(stdout).toMatch(/Sortie, confirmed together +█* +[\d.]+ µs/);
  expect(stdout).toMatch(/bare fetch, ack, flush +[\d.]+ µs +1\.00× +[\d.]+ ms/);
  expect(stdout).not.toContain("\x1b");
  expect(stderr).toBe("");
});

it("npm run bench says which sections there are", async () => {
  await expect(bench("--only", "everything")).rejects.toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/no section "everything".*--only <throughput \| round-trips \| /s),
  });
});

import { afterAll, vi } from "vitest";

// the next file is in the same process
afterAll(() => {
  vi.unstubAllEnvs();
  vi.unstubAllGlobals();
  vi.restoreAllMocks();
});

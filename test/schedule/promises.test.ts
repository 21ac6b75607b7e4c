import { promises } from "./promises.ts";

promises("server", "newest");
promises("function", "newest");

"""What the launcher of every Flex Template starts (FLEX_TEMPLATE_PYTHON_PY_FILE): see pipelines/driver.py."""

import sys

from pipelines import driver

if __name__ == "__main__":
    sys.exit(driver.main())

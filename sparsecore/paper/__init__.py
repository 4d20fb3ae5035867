"""What only the book needs: settings, studies, figures and tables. The library never imports it."""

from sparsecore.paper.blas import prefer_avx512

prefer_avx512()
